"""Who goes first: users share what is limited, each by the weight of their tier."""
