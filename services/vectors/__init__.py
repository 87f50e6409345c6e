"""The vectors of inputs that somebody waits for: they belong to no document and to no run."""
