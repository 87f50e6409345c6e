"""The routes of OpenAI's API, and what they have in common."""

from fastapi import APIRouter

from promptstack.api.http.route import ProtectedRoute

OPENAI_PREFIX = "/openai/v1"


def openai_router(route_class: type[ProtectedRoute] = ProtectedRoute) -> APIRouter:
    """A router for one of its resources. OpenAI describes these routes, so we don't."""
    return APIRouter(prefix=OPENAI_PREFIX, route_class=route_class, include_in_schema=False)
