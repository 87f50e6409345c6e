"""Whether an answer follows the run's JSON schema."""
