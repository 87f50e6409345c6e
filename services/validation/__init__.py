"""What callers may send, within which bounds."""
