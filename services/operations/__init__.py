"""Operations: what is done to all jobs that a filter matches, step by step, by a worker."""
