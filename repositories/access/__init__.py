"""The tables of who may do what: users and their API keys."""
