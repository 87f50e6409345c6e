"""Runs: batches of embeddings or generations under one id, cut into shards that workers take."""
