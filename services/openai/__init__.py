"""What OpenAI's clients read, made of what the ledger keeps: for direct calls and for batches."""
