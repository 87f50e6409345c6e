"""The rate limiter that all workers share: see docs/limiter.md."""
