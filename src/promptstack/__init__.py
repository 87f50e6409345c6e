"""Durable generation and embedding jobs: `from promptstack import PromptStack`."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promptstack.tasks.composition import PromptStack

__all__ = ["PromptStack"]


def __getattr__(name: str) -> object:
    """Import `PromptStack` when it is first asked for: its libraries take a second to load."""
    if name == "PromptStack":
        return import_module("promptstack.tasks.composition").PromptStack
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
