"""Side by side with what a user would write or pick instead; see docs/benchmarks.md."""
