"""Packs texts into embedding calls, each within what one call may hold."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


@dataclass(frozen=True)
class EmbeddingLimits:
    """What one embedding request may hold."""

    items: int
    """Texts per request."""
    bytes: int
    """UTF-8 bytes per request."""
    text_bytes: int | None = None
    """UTF-8 bytes above which a text is certainly too long. Below, the provider decides."""
    tokens: int | None = None
    """Tokens per request as `estimate_tokens` counts them, if bytes don't bound them."""
    text_tokens: int | None = None
    """Tokens per text, by the model's own tokenizer."""


class HasText(Protocol):
    """Something to embed."""

    @property
    def text(self) -> str:
        """Its text."""


T = TypeVar("T", bound=HasText)


def pack(
    passages: Sequence[T], limits: EmbeddingLimits, count: Callable[[str], int]
) -> Iterator[list[T]]:
    """Fill provider calls in order, each within the limits of items, UTF-8 bytes and tokens.

    `count` estimates the tokens of a text.
    """
    batch: list[T] = []
    bytes_ = tokens = 0
    for passage in passages:
        bytes_ += len(passage.text.encode())
        tokens += count(passage.text) if limits.tokens is not None else 0
        is_over = bytes_ > limits.bytes or (limits.tokens is not None and tokens > limits.tokens)
        if batch and (len(batch) == limits.items or is_over):
            yield batch
            batch, bytes_ = [], len(passage.text.encode())
            tokens = count(passage.text) if limits.tokens is not None else 0
        batch.append(passage)
    if batch:
        yield batch
