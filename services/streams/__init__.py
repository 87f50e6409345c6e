"""Texts of generations as they are produced: workers write them to Redis, and doors read them."""
