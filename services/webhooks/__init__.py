"""Webhooks: the ends of jobs and runs are told to other services, signed, until they have heard."""
