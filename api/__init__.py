"""The ways in, each a thin skin over the services."""
