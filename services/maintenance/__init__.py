"""What keeps jobs going when a worker, a message or the ledger was lost."""
