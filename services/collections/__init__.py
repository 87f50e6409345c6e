"""Collections: what documents and runs belong to, and what is searched."""
