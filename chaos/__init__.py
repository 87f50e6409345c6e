"""Faults on purpose: a known load under fire, and a judge of what became of it."""
