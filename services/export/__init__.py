"""What runs made, written to files as it streams by."""
