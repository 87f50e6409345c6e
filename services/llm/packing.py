"""Putting texts together to embedding calls."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from promptstack.services.llm.base import EmbeddingLimits


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
