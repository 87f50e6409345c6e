"""Anthropic's API under `/anthropic/v1`: its clients work here unchanged, by durable jobs."""
