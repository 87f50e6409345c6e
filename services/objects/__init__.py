"""Object storage: where sources of runs are read, and their outputs written."""
