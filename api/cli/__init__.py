"""The command line `promptstack`."""
