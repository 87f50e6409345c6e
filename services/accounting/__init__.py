"""What calls cost, who has paid for what, and the usage of a user."""
