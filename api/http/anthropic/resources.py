"""All routes below `/anthropic/v1`."""

from fastapi import APIRouter

from promptstack.api.http.anthropic import batches, messages

RESOURCES: tuple[APIRouter, ...] = (messages.router, batches.router)
"""Their routers, in the order in which a path is looked for."""
