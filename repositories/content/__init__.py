"""What was paid for by its content: documents, vectors and their indexes."""
