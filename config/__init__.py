"""Settings, names and the servers that a deployment talks to: the lowest layer."""
