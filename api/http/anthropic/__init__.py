"""Anthropic's API under `/anthropic/v1`: its clients work here unchanged, and their work is durable."""
