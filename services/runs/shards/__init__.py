"""A shard's way through a worker: its calls, its failures, what it stores."""
