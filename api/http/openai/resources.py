"""All routes below `/openai/v1`."""

from fastapi import APIRouter

from promptstack.api.http.openai import models

RESOURCES: tuple[APIRouter, ...] = (models.router,)
"""Their routers, in the order in which a path is looked for."""
