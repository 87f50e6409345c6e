"""The cache in Redis: answers that may be some seconds old, and are never asked about money."""
