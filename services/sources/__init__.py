"""From a file, a stream, a folder or a Python iterable to checked inputs, one at a time."""
