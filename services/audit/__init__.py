"""The audit log: who did what, on what, from where, and with what result."""
