"""Reads a file, a stream, a folder or a Python iterable into checked inputs, one at a time."""
