"""Feature flags: for whom a feature is on."""
