"""Webhooks: where events are sent, what is due, and what became of it."""
