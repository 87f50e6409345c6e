"""Embeddings: OpenAI's own client gets the vectors of texts and token ids, from any provider."""

import base64
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import numpy as np
import numpy.typing as npt
import openai
import pytest
from openai.types import CreateEmbeddingResponse
from pydantic import SecretStr

from promptstack.repositories.models import JobKind, JobState
from promptstack.services.llm.errors import ContextTooLong, QuotaExhausted
from promptstack.simulator.answers import vector_for
from promptstack.tasks.worker_services import WorkerServices
from tests.direct import openai_client, working
from tests.fakes import FakeProvider, HeldProvider, employ, raises
from tests.http import live_server
from tests.jobs import another, attempts
from tests.processes import wait_until
from tests.simulators import ForkedSimulator

MODEL = "fake/fake-1"
SMALL = "text-embedding-3-small"
JOB_ID = "x-promptstack-job-id"


class Sized(FakeProvider):
    """Vectors that show which text they are of; texts that begin with "long" are refused."""

    def vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.array([[len(one), 0.1] for one in texts], np.float32)

    async def called(self, texts: Sequence[str], failures: int) -> None:
        await super().called(texts, failures)
        if any(one.startswith("long") for one in texts):
            raise ContextTooLong("It is too long.")


@pytest.fixture
def fake(stack: WorkerServices) -> FakeProvider:
    provider = Sized()
    employ(stack, provider)
    return provider


@pytest.fixture
def sdk(stack: WorkerServices) -> Iterator[openai.OpenAI]:
    with openai_client(stack) as client:
        yield client


@pytest.fixture
def worked(stack: WorkerServices) -> Iterator[WorkerServices]:
    with working(stack):
        yield stack


@pytest.fixture(scope="module")
def simulator() -> Iterator[ForkedSimulator]:
    with ForkedSimulator() as running:
        yield running


def numbers(made: CreateEmbeddingResponse) -> list[list[float]]:
    return [np.array(one.embedding, np.float32).tolist() for one in made.data]


def as_sent(*vectors: Any) -> list[list[float]]:
    return [np.array(one, np.float32).tolist() for one in vectors]


def test_vectors_come_in_base64_as_the_sdk_asks_for_them_and_in_numbers_where_nobody_asks(
    sdk: openai.OpenAI, worked: WorkerServices, fake: FakeProvider
) -> None:
    raw = sdk.embeddings.with_raw_response.create(model=MODEL, input=["a", "bb", "a"])
    assert json.loads(raw.content)["data"][1]["embedding"] == base64.b64encode(
        np.array([2, 0.1], "<f4").tobytes()
    ).decode("ascii")
    assert numbers(raw.parse()) == as_sent([1, 0.1], [2, 0.1], [1, 0.1])
    plain = sdk.embeddings.with_raw_response.create(model=MODEL, input="a", encoding_format="float")
    made = CreateEmbeddingResponse.model_validate_json(plain.content, strict=True)
    assert numbers(made) == as_sent([1, 0.1])
    assert (made.object, made.model, made.data[0].index) == ("list", "fake-1", 0)
    assert made.usage.prompt_tokens == made.usage.total_tokens > 0
    assert fake.batches == [["a", "bb"]]
    first, _ = worked.jobs.get_many()[::-1]
    assert raw.headers[JOB_ID] == str(first.id)
    assert (first.kind, first.state) == (JobKind.VECTORS, JobState.SUCCEEDED)


def test_without_a_word_of_its_format_numbers_are_floats(
    sdk: openai.OpenAI, worked: WorkerServices, fake: FakeProvider
) -> None:
    body = {"model": MODEL, "input": "a", "surprise": 1}
    made: Any = sdk.post("/embeddings", body=body, cast_to=object)
    assert made["data"] == [{"object": "embedding", "index": 0, "embedding": [1.0, 0.1]}]


def test_token_ids_and_dimensions_go_to_a_provider_with_openais_wire(
    stack: WorkerServices, simulator: ForkedSimulator
) -> None:
    """As langchain-openai sends them by default."""
    with (
        another(
            stack, openai_base_url=simulator.url, openai_api_key=SecretStr("sk-test")
        ) as calling,
        working(calling),
        openai_client(calling) as sdk,
    ):
        made = sdk.embeddings.create(model=SMALL, input=[[1, 2_345], [67]], dimensions=4)
        alone = sdk.embeddings.create(model=SMALL, input=[1, 2_345], dimensions=4)
        texts = sdk.embeddings.create(model=SMALL, input=["00012345"], dimensions=4)
    expected = [vector_for(SMALL, text, 4) for text in ("00012345", "0067")]
    assert numbers(made) == as_sent(*expected)
    assert numbers(alone) == numbers(texts) == as_sent(expected[0])
    kept = [job.result["embedded"] for job in stack.jobs.get_many()[::-1] if job.result]
    assert kept == [2, 0, 1]  # the same ids are paid for once; a text is not its ids


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"input": [[1, 2]]}, "input", "check_embedding_ctx_length=False"),
        ({"input": "x", "dimensions": 5}, "dimensions", "leave out dimensions"),
        ({"input": ""}, "input", r"'input\[0\]' is empty"),
        ({"input": ["a", ""]}, "input", r"'input\[1\]' is empty"),
        ({"input": []}, "input", "is missing"),
        ({}, "input", "is missing"),
        ({"input": ["x"] * 2_049}, "input", "at most 2,048"),
        ({"input": [1.5]}, "input", "neither text nor"),
        ({"input": [[-1]]}, "input", "token ids"),
        ({"input": "a\x00"}, None, "NUL"),
        ({"input": "x", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format", "float"),
    ],
    ids=[
        "token ids",
        "dimensions",
        "empty",
        "one is empty",
        "none",
        "missing",
        "too many",
        "numbers",
        "negative",
        "NUL",
        "no size",
        "format",
    ],
)
def test_what_cannot_be_meant_is_a_400_that_names_the_field(
    sdk: openai.OpenAI, fake: FakeProvider, body: dict[str, Any], param: str | None, says: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        sdk.post("/embeddings", body={"model": MODEL, **body}, cast_to=object)
    if param is not None:
        assert caught.value.param == param
    assert fake.batches == []


def test_a_model_that_nobody_knows_is_a_404(sdk: openai.OpenAI, fake: FakeProvider) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.embeddings.create(model="local/nobody-s", input="x")
    assert caught.value.code == "model_not_found"


def test_a_text_that_is_too_long_is_a_400_which_is_not_sent_again(
    sdk: openai.OpenAI, worked: WorkerServices, fake: FakeProvider
) -> None:
    for given in ("long", ["a", "long"]):
        with pytest.raises(openai.BadRequestError) as caught:
            sdk.embeddings.create(model=MODEL, input=given)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
        assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_spent_quota_is_a_429_which_is_not_sent_again(
    sdk: openai.OpenAI, worked: WorkerServices, fake: FakeProvider
) -> None:
    fake.on_call = raises(QuotaExhausted("It is used up."))
    with pytest.raises(openai.RateLimitError) as caught:
        sdk.embeddings.create(model=MODEL, input="a")
    assert caught.value.code == "insufficient_quota"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_small_calls_at_the_same_time_share_a_job_and_none_fails_for_another(
    sdk: openai.OpenAI, stack: WorkerServices, fake: FakeProvider
) -> None:
    """The first one is under way until a worker takes it, so all others are gathered."""

    def ask(text: str) -> list[list[float]] | str | None:
        try:
            return numbers(sdk.embeddings.create(model=MODEL, input=text))
        except openai.BadRequestError as error:
            return error.code

    texts = ["first", *("x" * n for n in range(1, 9)), "long"]
    with ThreadPoolExecutor(len(texts)) as threads:
        asking = [threads.submit(ask, text) for text in texts]
        wait_until(
            lambda: sum(len(job) for job in _inputs(stack)) == len(texts), "all calls in jobs"
        )
        with working(stack):
            found = [one.result(60) for one in asking]
    assert found[:-1] == [as_sent([len(text), 0.1]) for text in texts[:-1]]
    assert found[-1] == "context_length_exceeded"
    assert len(stack.jobs.get_many()) < len(texts)


def _inputs(stack: WorkerServices) -> list[list[str]]:
    with stack.ledger.transaction() as unit:
        rows = unit.session.connection().exec_driver_sql("SELECT request -> 'inputs' FROM jobs")
        return [row[0] for row in rows]


def test_a_client_that_hangs_up_cancels_its_job(stack: WorkerServices) -> None:
    held = HeldProvider()
    employ(stack, held)
    key = stack.keys.create("ada@example.org", "Test")
    with live_server(stack) as (_, url), working(stack):
        with closing(HTTPConnection(url.removeprefix("http://"), timeout=30)) as connection:
            connection.request(
                "POST",
                "/openai/v1/embeddings",
                json.dumps({"model": "held/held-1", "input": "x"}),
                {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            )
            wait_until(lambda: len(held.held) == 1, "the call")
        wait_until(
            lambda: [job.state for job in stack.jobs.get_many()] == [JobState.CANCELLED],
            "the cancelled job",
        )
        stack.loop.run(held.let_go(0))


def test_an_idempotency_key_makes_one_job(
    sdk: openai.OpenAI, worked: WorkerServices, fake: FakeProvider
) -> None:
    headers = {"Idempotency-Key": "once"}
    for _ in range(2):
        made = sdk.embeddings.create(model=MODEL, input="a", extra_headers=headers)
        assert numbers(made) == as_sent([1, 0.1])
    [job] = worked.jobs.get_many()
    assert len(attempts(worked, job)) == 1
    with pytest.raises(openai.ConflictError) as caught:
        sdk.embeddings.create(model=MODEL, input="b", extra_headers=headers)
    assert caught.value.code == "idempotency_conflict"


def test_a_large_call_is_answered_whole(
    sdk: openai.OpenAI, worked: WorkerServices, fake: FakeProvider
) -> None:
    texts = [f"{n} " + "x" * 1_000 for n in range(300)]
    made = sdk.embeddings.create(model=MODEL, input=texts)
    assert numbers(made) == as_sent(*([len(one), 0.1] for one in texts))
