"""Checks of what callers send, and its bounds."""
