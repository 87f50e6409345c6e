"""Budgets: what keys, users and the deployment may spend, and what they have spent."""
