"""Vectors as OpenAI answers them."""

import base64
import json

import numpy as np
import pytest
from openai.types import CreateEmbeddingResponse

from promptstack.services.openai.embeddings import EncodingFormat, embedding_list

VECTORS = [
    np.array(numbers, "<f4").tobytes()
    for numbers in ([0.1, -2.5e-8, 3.0], [1.0, 16777217.0, -0.0], [0.3, 1e-38, 3.4e38])
]


@pytest.mark.parametrize("form", ["float", "base64"])
def test_numbers_arrive_as_they_were(form: EncodingFormat) -> None:
    answer = json.loads(embedding_list("m", VECTORS, 7, form))
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    for one, expected in zip(answer["data"], VECTORS, strict=True):
        numbers = one["embedding"]
        got = base64.b64decode(numbers) if form == "base64" else np.array(numbers, "<f4").tobytes()
        assert got == expected


def test_the_sdk_takes_an_answer_without_a_change() -> None:
    written = embedding_list("m", VECTORS, 7)
    read = CreateEmbeddingResponse.model_validate_json(written, strict=True)
    assert read.model_dump() == json.loads(written)
    assert (read.model, read.usage.total_tokens, len(read.data)) == ("m", 7, 3)


def test_an_answer_without_vectors_is_json_too() -> None:
    assert json.loads(embedding_list("m", [], 0))["data"] == []
