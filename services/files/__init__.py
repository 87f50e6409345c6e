"""Files of users: uploaded ones, and the outputs of batches."""
