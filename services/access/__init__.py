"""Who may do what: users, their API keys and what each allows."""
