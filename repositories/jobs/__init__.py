"""The tables of jobs: their steps, attempts, messages and workers."""
