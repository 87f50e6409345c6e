"""Notifications by mail: each is a job in the ledger, and a worker hands it to a mail server."""
