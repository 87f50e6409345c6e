"""The routes of Anthropic's API, and what they have in common."""

from fastapi import APIRouter

from promptstack.api.http.route import ProtectedRoute

ANTHROPIC_PREFIX = "/anthropic/v1"


def anthropic_router() -> APIRouter:
    """A router for one of its resources. Anthropic describes these routes, so we don't."""
    return APIRouter(prefix=ANTHROPIC_PREFIX, route_class=ProtectedRoute, include_in_schema=False)
