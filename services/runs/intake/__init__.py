"""From checked inputs to the items of a run, and what they will cost."""
