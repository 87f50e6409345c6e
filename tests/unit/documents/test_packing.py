"""Passages are packed into provider calls: in order, within the limits, none lost."""

import hashlib
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from promptstack.repositories.content.documents import Passage
from promptstack.services.llm.packing import EmbeddingLimits, pack


def passages_of(texts: list[str]) -> list[Passage]:
    return [
        Passage(position, position, text, hashlib.sha256(text.encode()).digest())
        for position, text in enumerate(texts)
    ]


passages = st.lists(st.text("aé日🙂", min_size=1, max_size=12)).map(passages_of)
limits = st.builds(
    EmbeddingLimits,
    items=st.integers(1, 6),
    bytes=st.integers(1, 60),
    tokens=st.none() | st.integers(1, 30),
)


def is_within(batch: list[Passage], limits: EmbeddingLimits) -> bool:
    """Here a token is a character."""
    bytes_ = sum(len(passage.text.encode()) for passage in batch)
    tokens = sum(len(passage.text) for passage in batch)
    return bytes_ <= limits.bytes and (limits.tokens is None or tokens <= limits.tokens)


@given(passages, limits)
def test_all_passages_come_out_once_and_in_order(
    given: list[Passage], limits: EmbeddingLimits
) -> None:
    batches = list(pack(given, limits, len))
    assert [passage for batch in batches for passage in batch] == given
    assert all(batches)


@given(passages, limits)
def test_no_batch_is_over_a_limit(given: list[Passage], limits: EmbeddingLimits) -> None:
    for batch in pack(given, limits, len):
        assert len(batch) <= limits.items
        # A passage that is too long by itself travels alone; the provider says what it thinks.
        assert is_within(batch, limits) or len(batch) == 1


@given(passages, limits)
def test_no_batch_ends_before_it_is_full(given: list[Passage], limits: EmbeddingLimits) -> None:
    batches = list(pack(given, limits, len))
    for batch, following in pairwise(batches):
        longer = [*batch, following[0]]
        assert len(longer) > limits.items or not is_within(longer, limits)


def test_bytes_are_counted_and_not_characters() -> None:
    limits = EmbeddingLimits(items=10, bytes=8)
    assert [len(batch) for batch in pack(passages_of(["🙂", "🙂", "🙂"]), limits, len)] == [2, 1]


def test_nothing_makes_no_call() -> None:
    assert list(pack([], EmbeddingLimits(items=1, bytes=1), len)) == []
