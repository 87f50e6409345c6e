"""OpenAI's API under `/openai/v1`: its clients work here unchanged, and their work is durable."""
