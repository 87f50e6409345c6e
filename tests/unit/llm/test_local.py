"""The local provider's vectors: those of the library, in bounded memory."""

import asyncio
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from promptstack.services.llm.answers import EmbeddingResponse
from promptstack.services.llm.local import MODEL, LocalService

TEXTS = ["One.", "Two words, then more of them.", "東京 naïve Überraschung", "code_x = 12\n" * 40]


@pytest.fixture(scope="module")
def service() -> LocalService:
    return LocalService()


def embedded(service: LocalService, texts: Sequence[str]) -> EmbeddingResponse:
    return asyncio.run(service.embed(texts, MODEL, None))


def test_vectors_are_those_of_the_library(service: LocalService) -> None:
    found = embedded(service, TEXTS)
    expected = service._model().embed(TEXTS, norm=True)
    assert np.allclose(found.vectors, expected, atol=1e-6)
    assert found.input_tokens == sum(map(service.estimate_tokens, TEXTS))


def test_a_long_text_is_like_its_words(service: LocalService) -> None:
    words = "some words of a long text "
    long, short = embedded(service, [words * 10_000, words * 100]).vectors
    assert np.allclose(long, short, atol=1e-2)


@pytest.mark.parametrize("long", ["word " * 200_000, "東" * 330_000], ids=["words", "no words"])
def test_a_long_text_among_short_ones_takes_little_memory(service: LocalService, long: str) -> None:
    """In a table of equally long rows, this would be gigabytes."""
    tracemalloc.start()
    found = embedded(service, [long, *["a"] * 63])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.vectors.shape == (64, 256)
    assert peak < 100_000_000
