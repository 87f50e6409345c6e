"""The methods of clients, by what they are about."""
