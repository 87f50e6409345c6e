"""All routes below `/openai/v1`."""

from fastapi import APIRouter

RESOURCES: tuple[APIRouter, ...] = ()
"""Their routers, in the order in which a path is looked for."""
