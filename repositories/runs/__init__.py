"""The tables of runs: their shards, items, outcomes and answers."""
