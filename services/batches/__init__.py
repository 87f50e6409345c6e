"""Batches: files of requests, done by runs, with a line of output for each line of input."""
