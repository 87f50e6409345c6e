"""The HTTP API: one router a resource, and every error as a problem (RFC 9457)."""
