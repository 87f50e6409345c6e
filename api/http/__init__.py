"""The HTTP API: a router for each resource, and every error as a problem (RFC 9457)."""
