"""Options of the commands: what a person types, and what it means."""
