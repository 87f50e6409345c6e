"""What the base class checks for every provider."""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from promptstack.services.errors import InputTooLong, InvalidInput, UnknownModel
from promptstack.services.llm.answers import Capability, EmbeddingResponse, LLMResponse
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.errors import BadResponse, InvalidProviderRequest, Overloaded
from promptstack.services.llm.openai import OpenAIService
from promptstack.services.llm.requests import GenerationRequest, Message


class Fixed(LLMService):
    """Answers what it is given, and by its clock each call takes two seconds."""

    name = "fixed"
    default_models: ClassVar[Mapping[Capability, str]] = {
        Capability.GENERATION: "g-1",
        Capability.EMBEDDING: "e-1",
    }
    known_models: ClassVar[Mapping[Capability, frozenset[str]] | None] = {
        Capability.GENERATION: frozenset({"g-1", "g-2"}),
        Capability.EMBEDDING: frozenset({"e-1"}),
    }

    def __init__(
        self,
        vectors: npt.NDArray[np.float32] | None = None,
        error: Exception | None = None,
    ) -> None:
        ticks: Iterator[float] = iter(range(0, 100, 2))
        super().__init__(clock=lambda: next(ticks))
        self._vectors = vectors
        self._error = error

    async def _generate(
        self, request: GenerationRequest, user_id: UUID | None, failures: int
    ) -> LLMResponse:
        if self._error is not None:
            raise self._error
        return LLMResponse("an answer", request.model, 3, 4, "stop")

    async def _embed(
        self, texts: Sequence[str], model: str, user_id: UUID | None, dimensions: int | None
    ) -> EmbeddingResponse:
        assert self._vectors is not None
        return EmbeddingResponse(self._vectors, model, 5)

    def estimate_tokens(self, text: str) -> int:
        return len(text)

    async def is_available(self) -> bool:
        return True


class GeneratesOnly(Fixed):
    name = "generates"
    default_models: ClassVar[Mapping[Capability, str]] = {Capability.GENERATION: "g-1"}
    known_models = None


class Silent(LLMService):
    name = "silent"

    def estimate_tokens(self, text: str) -> int:
        return 0

    async def is_available(self) -> bool:
        return False


def request(**fields: object) -> GenerationRequest:
    return GenerationRequest.model_validate({"provider": "fixed", "model": "g-1", **fields})


# Models and options


def test_the_default_model_is_taken_when_none_is_named() -> None:
    assert Fixed.choose_model(Capability.GENERATION, None) == "g-1"
    assert Fixed.choose_model(Capability.EMBEDDING, None) == "e-1"


def test_a_known_model_is_taken_without_its_spaces() -> None:
    assert Fixed.choose_model(Capability.GENERATION, " g-2 ") == "g-2"


@pytest.mark.parametrize("model", ["e-1", "g-3", "", "  "])
def test_an_unknown_model_names_the_known(model: str) -> None:
    with pytest.raises(UnknownModel, match="Known: g-1, g-2"):
        Fixed.choose_model(Capability.GENERATION, model)


def test_a_capability_that_is_not_offered_has_no_models() -> None:
    with pytest.raises(UnknownModel, match="offers no embedding models"):
        GeneratesOnly.choose_model(Capability.EMBEDDING, None)
    with pytest.raises(UnknownModel, match="offers no embedding models"):
        GeneratesOnly.choose_model(Capability.EMBEDDING, "e-1")


def test_a_provider_that_alone_knows_its_models_takes_any_name() -> None:
    assert GeneratesOnly.choose_model(Capability.GENERATION, "ft:g-9") == "ft:g-9"
    with pytest.raises(UnknownModel, match="for example g-1"):
        GeneratesOnly.choose_model(Capability.GENERATION, " ")


def test_options_that_a_provider_does_not_know_are_refused() -> None:
    Fixed.check_options({})
    with pytest.raises(InvalidInput, match="no option top_k, top_p"):
        Fixed.check_options({"top_p": 1, "top_k": 2})


# Requests


def test_a_prompt_becomes_a_conversation_with_the_system_prompt_first() -> None:
    assert request(prompt="hi", system="be brief").conversation() == [
        Message(role="system", content="be brief"),
        Message(role="user", content="hi"),
    ]


def test_messages_are_the_conversation() -> None:
    turns = [Message(role="user", content="hi"), Message(role="assistant", content="yes?")]

    assert request(messages=turns).conversation() == turns


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": "hi", "messages": [{"role": "user", "content": "hi"}]},
        {"prompt": ""},
        {"prompt": " \n"},
        {"messages": []},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "robot", "content": "hi"}]},
        {"messages": [{"role": "user", "content": "hi", "nick": "x"}]},
        {"prompt": "hi", "promt": "hi"},
        {"prompt": "hi", "temperature": 2.1},
        {"prompt": "hi", "temperature": float("nan")},
        {"prompt": "hi", "max_tokens": 0},
    ],
)
def test_a_request_that_cannot_be_meant_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        request(**fields)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("a\0b", "a NUL character at position 1"), ("ab\ud800", "half of a surrogate pair")],
)
def test_text_that_cannot_be_stored_is_refused_without_quoting_it(text: str, problem: str) -> None:
    places: list[dict[str, object]] = [
        {"prompt": text},
        {"prompt": "hi", "system": text},
        {"prompt": "hi", "stop": [text]},
        {"messages": [{"role": "user", "content": text}]},
    ]
    for fields in places:
        with pytest.raises(InvalidInput, match=problem) as caught:
            request(**fields)
        assert text not in str(caught.value)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_other_text_is_taken_as_it_is(text: str) -> None:
    message = Message(role="user", content=text)

    assert request(messages=[message]).conversation()[0].content == text


# Answers


def test_a_generation_is_timed() -> None:
    response = asyncio.run(Fixed().generate_text(request(prompt="hi"), None))

    assert response.text == "an answer"
    assert response.tokens_used == 7
    assert response.latency_seconds == 2


def test_good_vectors_are_passed_on_and_timed() -> None:
    vectors = np.ones((2, 3), dtype=np.float32)

    response = asyncio.run(Fixed(vectors).embed(["a", "b"], "e-1", None))

    assert response.vectors is vectors
    assert response.latency_seconds == 2


@pytest.mark.parametrize("shape", [(1, 3), (3, 3), (2, 0), (0, 3), (2,), (6,), (2, 3, 1)], ids=str)
def test_vectors_of_a_wrong_count_or_shape_are_never_returned(shape: tuple[int, ...]) -> None:
    vectors = np.ones(shape, dtype=np.float32)

    with pytest.raises(BadResponse, match="for 2 texts"):
        asyncio.run(Fixed(vectors).embed(["a", "b"], "e-1", None))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_never_returned(number: float) -> None:
    vectors = np.ones((2, 3), dtype=np.float32)
    vectors[1, 2] = number

    with pytest.raises(BadResponse, match="not finite"):
        asyncio.run(Fixed(vectors).embed(["a", "b"], "e-1", None))


def test_what_is_not_offered_is_an_invalid_request() -> None:
    with pytest.raises(InvalidProviderRequest, match="no generation models"):
        asyncio.run(Silent().generate_text(request(prompt="hi"), None))
    with pytest.raises(InvalidProviderRequest, match="no embedding models"):
        asyncio.run(Silent().embed(["a"], "m", None))


def test_the_log_has_the_outcome_but_no_content(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="promptstack.services.llm")
    error = Overloaded("It can't.", detail="about my secret", status=503, request_id="req_1")

    asyncio.run(Fixed().generate_text(request(prompt="my secret"), None))
    with pytest.raises(Overloaded):
        asyncio.run(Fixed(error=error).generate_text(request(prompt="my secret"), None))

    assert "generation by fixed/g-1: 3+4 tokens in 2.000 s" in caplog.text
    assert "PROVIDER_OVERLOADED (status 503, request req_1)" in caplog.text
    assert "secret" not in caplog.text
    assert "an answer" not in caplog.text


@pytest.mark.parametrize(
    ("inputs", "dimensions", "field", "says"),
    [
        ([], 256, "/dimensions", "leave out dimensions"),
        (["a", (1, 2)], None, "/input", "check_embedding_ctx_length=False"),
    ],
    ids=["dimensions", "token ids"],
)
def test_what_no_call_to_it_could_have_is_refused(
    inputs: list[str | tuple[int, ...]], dimensions: int | None, field: str, says: str
) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        Fixed.check_embedding("e-1", inputs, dimensions)
    assert caught.value.pointer == field
    OpenAIService.check_embedding("m", inputs, dimensions)


def test_a_text_that_is_certainly_too_long_is_refused() -> None:
    with pytest.raises(InputTooLong, match=r"input\[1\] has 65,537 bytes"):
        OpenAIService.check_embedding("m", ["a" * 65_536, "a" * 65_537])


def test_vectors_of_another_size_than_asked_for_are_never_returned() -> None:
    three = np.ones((2, 3), np.float32)
    with pytest.raises(BadResponse, match="3 numbers where 2 were asked for"):
        asyncio.run(Fixed(three).embed(["a", "b"], "e-1", None, dimensions=2))
    response = asyncio.run(Fixed(three).embed(["a", "b"], "e-1", None, dimensions=3))
    assert response.vectors.shape == (2, 3)
