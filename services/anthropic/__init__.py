"""Anthropic's Messages API, as its clients write and read it: pure functions."""
