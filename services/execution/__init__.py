"""A job's way through a worker: claim, call the provider, store the result."""
