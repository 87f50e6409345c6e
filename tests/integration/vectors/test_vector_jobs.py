"""Jobs for vectors: each input is paid for once, and one that is refused fails alone."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from sqlalchemy import text

from promptstack.repositories.models import JobState
from promptstack.services.errors import InvalidInput, NotYet
from promptstack.services.jobs.views import JobView
from promptstack.services.llm.errors import ContextTooLong, Overloaded
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.jobs import attempts, embed, make_due, row, run, state, two_users


class Numbered(FakeProvider):
    """Vectors that show which text they are of; texts that begin with "long" are refused."""

    def vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.array([[len(one), 0.5] for one in texts], np.float32)

    async def called(self, texts: Sequence[str], failures: int) -> None:
        await super().called(texts, failures)
        if any(one.startswith("long") for one in texts):
            raise ContextTooLong("It is too long.")


@pytest.fixture
def fake(stack: WorkerServices) -> FakeProvider:
    return Numbered().serve(stack)


def ask(stack: WorkerServices, *inputs: str, **how: object) -> JobView:
    job = stack.jobs.enqueue_vectors(inputs, provider="fake", **how)  # type: ignore[arg-type]
    run(stack, job)
    return stack.jobs.get(job.id)


def numbers(stack: WorkerServices, *inputs: str) -> list[list[float]]:
    found = stack.vectors.read(inputs, "fake", "fake-1", None)
    return [np.frombuffer(one.vector, "<f4").tolist() for one in found]


def test_equal_inputs_are_paid_for_once(stack: WorkerServices, fake: FakeProvider) -> None:
    first = ask(stack, "a", "bb", "a")
    assert fake.batches == [["a", "bb"]]
    assert numbers(stack, "a", "bb", "a") == [[1, 0.5], [2, 0.5], [1, 0.5]]
    assert first.result == {
        "inputs": 3,
        "dimensions": 2,
        "embedded": 2,
        "reused": 0,
        "provider_calls": 1,
        "tokens_used": 2,
    }
    again = ask(stack, "bb", "ccc")
    assert fake.batches == [["a", "bb"], ["ccc"]]
    assert again.result is not None
    assert (again.result["embedded"], again.result["reused"]) == (1, 1)


def test_the_tokens_of_a_call_are_shared_by_its_inputs(
    stack: WorkerServices, fake: FakeProvider
) -> None:
    ask(stack, "a", "b" * 99)
    found = stack.vectors.read(["a", "b" * 99], "fake", "fake-1", None)
    assert sum(one.tokens or 0 for one in found) == 2


def test_a_vector_is_its_users_own(stack: WorkerServices, fake: FakeProvider) -> None:
    ada, eve = two_users(stack)
    ask(stack, "a", user_id=ada)
    ask(stack, "a", user_id=eve)
    assert fake.batches == [["a"], ["a"]]
    with pytest.raises(NotYet):
        stack.vectors.read(["a"], "fake", "fake-1", None)


def test_a_passage_of_a_document_is_not_paid_for_again(
    stack: WorkerServices, fake: FakeProvider
) -> None:
    run(stack, embed(stack, "boat"))
    [[passage]] = fake.batches
    job = ask(stack, passage)
    assert fake.batches == [[passage]]
    assert job.result is not None
    assert job.result["reused"] == 1
    assert numbers(stack, passage) == [[len(passage), 0.5]]


def test_an_input_that_is_refused_fails_alone(stack: WorkerServices, fake: FakeProvider) -> None:
    job = ask(stack, "a", "long", "bb", "long", "ccc")
    assert job.state is JobState.SUCCEEDED
    assert job.result is not None
    error = {"error_code": "CONTEXT_TOO_LONG", "error": "It is too long."}
    assert job.result["failed"] == [{"input": 1, **error}, {"input": 3, **error}]
    assert numbers(stack, "a", "bb", "ccc") == [[1, 0.5], [2, 0.5], [3, 0.5]]


def test_a_job_of_which_all_are_refused_fails(stack: WorkerServices, fake: FakeProvider) -> None:
    job = ask(stack, "long")
    assert (job.state, job.error_code) == (JobState.FAILED, "CONTEXT_TOO_LONG")
    assert len(fake.batches) == 1


def test_a_job_is_tried_again_where_the_provider_is_overloaded(
    stack: WorkerServices, fake: FakeProvider
) -> None:
    troubles = [Overloaded("Later.")]

    def overloaded() -> None:
        if troubles:
            raise troubles.pop()

    fake.on_call = overloaded
    job = stack.jobs.enqueue_vectors(["a"], provider="fake")
    run(stack, job)
    assert state(stack, job) is JobState.QUEUED
    make_due(stack, job)
    run(stack, job)
    assert state(stack, job) is JobState.SUCCEEDED
    assert [attempt.state for attempt in attempts(stack, job)] == ["failed", "succeeded"]


def test_two_jobs_at_once_pay_once(stack: WorkerServices, fake: FakeProvider) -> None:
    first, second = (stack.jobs.enqueue_vectors(["a"], provider="fake") for _ in range(2))
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> "asyncio.Future[None]":
        begun.set()
        return asyncio.ensure_future(asyncio.to_thread(go_on.wait, 60))  # type: ignore[arg-type]

    fake.on_call = wait
    one = threading.Thread(target=run, args=(stack, first))
    other = threading.Thread(target=run, args=(stack, second))
    one.start()
    assert begun.wait(60)
    other.start()
    go_on.set()
    for thread in (one, other):
        thread.join(60)
    if state(stack, second) is JobState.QUEUED:  # on a slow machine it waits in the queue
        make_due(stack, second)
        run(stack, second)
    assert fake.batches == [["a"]]
    assert state(stack, first) is state(stack, second) is JobState.SUCCEEDED


def test_what_was_paid_for_is_kept_where_the_job_was_cancelled(
    stack: WorkerServices, fake: FakeProvider
) -> None:
    job = stack.jobs.enqueue_vectors(["a"], provider="fake")

    def cancel() -> None:
        stack.jobs.cancel(job.id)

    fake.on_call = cancel
    run(stack, job)
    assert state(stack, job) is JobState.CANCELLED
    fake.on_call = lambda: None
    ask(stack, "a")
    assert fake.batches == [["a"]]


def test_more_inputs_than_a_call_takes_are_several_calls(
    stack: WorkerServices, fake: FakeProvider
) -> None:
    texts = [f"text {number}" for number in range(130)]
    job = ask(stack, *texts)
    assert [len(batch) for batch in fake.batches] == [64, 64, 2]
    assert job.result is not None
    assert (job.current, job.result["embedded"]) == (job.total, 130)


def test_results_hold_no_vectors_and_they_go_with_time(
    stack: WorkerServices, fake: FakeProvider
) -> None:
    job = ask(stack, "a")
    assert "0.5" not in str(row(stack, job).result)
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("UPDATE query_vectors SET created_at = now() - interval '9 d'"))
        assert unit.query_vectors.prune(stack.settings.query_vector_seconds) == 1
    with pytest.raises(NotYet):
        numbers(stack, "a")


@pytest.mark.parametrize(
    ("inputs", "how", "says"),
    [
        ([], {}, "at least 1"),
        ([""], {}, "at least 1"),
        (["x"] * 2_049, {}, "at most 2048"),
        (["x"], {"dimensions": 5}, "leave out dimensions"),
        ([(1, 2)], {}, "check_embedding_ctx_length=False"),
        (["\x00"], {}, "NUL"),
    ],
    ids=["none", "empty", "too many", "dimensions", "token ids", "NUL"],
)
def test_what_can_have_no_vectors_is_refused(
    stack: WorkerServices, fake: FakeProvider, inputs: list[str], how: dict[str, int], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        stack.jobs.enqueue_vectors(inputs, provider="fake", **how)  # type: ignore[arg-type]
