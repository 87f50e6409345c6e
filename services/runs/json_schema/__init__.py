"""Answers are validated by the run's JSON schema, within bounds of steps and time."""
