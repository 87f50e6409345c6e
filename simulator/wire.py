"""What a provider's wire hands to the server: answers and refusals, with no HTTP in them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from simulator.faults import Fault


@dataclass(frozen=True)
class Answer:
    """A good answer and what it costs."""

    body: Mapping[str, Any]
    billed: tuple[str, ...] = ()
    """Keys for the ledger, one for each piece of work."""


class Refusal(Exception):
    """The request is refused before any work is done."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


Endpoint = Callable[[Mapping[str, Any], Fault], Answer]
"""Answers a JSON body, bent by a fault of content. Raises `Refusal`."""


@dataclass(frozen=True)
class Wire:
    """One provider's API."""

    endpoints: Mapping[tuple[str, str], Endpoint]
    """By method and path."""
    refuse: Callable[[Refusal], Mapping[str, Any]]
    """Makes the provider's error body."""
