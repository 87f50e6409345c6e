"""Texts of generations as they are produced: a Redis stream a job, which workers write and doors read."""
