"""Writes the results of runs to files as a stream."""
