"""Spend caps of API keys, users and the whole deployment."""
