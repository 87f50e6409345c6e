"""Packs texts into embedding calls, each within what one call may hold."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, TypeVar

from promptstack.services.llm.answers import BYTES_PER_TOKEN

EmbeddingInput: TypeAlias = str | tuple[int, ...]
"""What has a vector: a text, or its tokens as the ids that a model's own tokenizer gives them."""

SUPPOSED_DIMENSIONS = 3_072
"""Of vectors, before any have come: those of the largest models of OpenAI and Gemini."""
BYTES_A_NUMBER = 8
"""Of a vector in hand: 5.3 as base64 in an answer, then 4 as a number, and as much in COPY."""
MOST_BYTES = 6 * 1_048_576
"""Of the vectors of one call: 512 of 1,536 numbers. Larger calls take more memory at a time and
save next to no processor time. With so many texts a call, a provider's limit of tokens a minute is
reached before its limit of requests."""


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

    def in_memory(self, dimensions: int) -> "EmbeddingLimits":
        """The same, and no more texts than have vectors of `MOST_BYTES`."""
        most = max(1, MOST_BYTES // (BYTES_A_NUMBER * dimensions))
        return replace(self, items=min(self.items, most))


class HasText(Protocol):
    """Something to embed."""

    @property
    def text(self) -> EmbeddingInput:
        """Its text."""


T = TypeVar("T", bound=HasText)


def pack(
    passages: Sequence[T], limits: EmbeddingLimits, count: Callable[[str], int]
) -> Iterator[list[T]]:
    """Fill provider calls in order, each within the limits of items, UTF-8 bytes and tokens.

    `count` estimates the tokens of a text.
    """

    def tokens_of(text: EmbeddingInput) -> int:
        if limits.tokens is None:
            return 0
        return count(text) if isinstance(text, str) else len(text)

    batch: list[T] = []
    bytes_ = tokens = 0
    for passage in passages:
        bytes_ += bytes_of(passage.text)
        tokens += tokens_of(passage.text)
        is_over = bytes_ > limits.bytes or (limits.tokens is not None and tokens > limits.tokens)
        if batch and (len(batch) == limits.items or is_over):
            yield batch
            batch, bytes_, tokens = [], bytes_of(passage.text), tokens_of(passage.text)
        batch.append(passage)
    if batch:
        yield batch


def bytes_of(text: EmbeddingInput) -> int:
    """The UTF-8 bytes of a text; of token ids, those of a text that usually has so many tokens."""
    return len(text.encode()) if isinstance(text, str) else BYTES_PER_TOKEN * len(text)


def bytes_in_hand(texts: Sequence[HasText], dimensions: int) -> int:
    """How much memory a call takes, from when it leaves until its vectors are stored."""
    size = sum(len(one.text) for one in texts)
    return size + len(texts) * BYTES_A_NUMBER * dimensions
