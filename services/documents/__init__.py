"""Documents: cut into chunks, embed, search."""
