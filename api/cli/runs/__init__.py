"""`promptstack runs`."""
