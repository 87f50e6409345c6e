"""Answers to what was accepted and is not done yet: 202, with where and when to ask."""

from fastapi import Response

from promptstack.tasks.composition import PromptStack

ASK_AGAIN_SECONDS = 1


def point_to(response: Response, stack: PromptStack, path: str) -> None:
    """Say where to ask, below the API's prefix, and when."""
    response.headers.update(asked_at(stack, path))


def asked_at(stack: PromptStack, path: str) -> dict[str, str]:
    """The headers that say so."""
    return {
        "Location": f"{stack.settings.api_v1_prefix}{path}",
        "Retry-After": str(ASK_AGAIN_SECONDS),
    }
