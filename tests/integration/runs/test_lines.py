"""Every item of a run can be read in order, with what became of it or that nothing did."""

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from promptstack.repositories.run_models import RunState
from promptstack.repositories.runs import page_columns
from promptstack.repositories.runs.results import RunLine
from promptstack.services.errors import NotFound, WrongState
from promptstack.services.runs.results import Span
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.jobs import execute
from tests.runs import work


def lines(stack: WorkerServices, run_id: UUID, span: Span | None = None) -> list[RunLine]:
    return [one for block in stack.run_results.lines(run_id, span or Span()) for one in block]


def request(custom_id: str, prompt: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    body = {"model": "fake-1", "messages": messages, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def shards(stack: WorkerServices, run_id: UUID) -> Sequence[UUID]:
    stack.run_lifecycle.run_once()
    with stack.ledger.transaction() as unit:
        query = text("SELECT id FROM jobs WHERE run_id = :run AND state = 'queued' ORDER BY id")
        return unit.session.scalars(query, {"run": run_id}).all()


def test_each_line_is_there_whatever_became_of_it(stack: WorkerServices) -> None:
    provider = FakeProvider().serve(stack)
    provider.answer = lambda prompt: prompt
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
    items: list[Any] = [
        request("good", "1", max_tokens=5),
        {**request("bad", "x"), "custom_id": [1]},
        request("hot", "2", temperature=2),
        request("good", "again"),
        request("no number", "x", response_format=schema),
        request("number", "7", response_format=schema),
    ]
    run = stack.runs.generate(items, provider="fake", skip_bad=True)
    early = lines(stack, run.id)
    assert [one.state for one in early] == ["open", "failed", "open", "failed", "open", "open"]
    assert stack.run_results.settled_until(run.id) == 0
    work(stack, run.id)
    found = lines(stack, run.id)
    assert [one.position for one in found] == [1, 2, 3, 4, 5, 6]
    assert [one.custom_id for one in found] == ["good", None, "hot", "good", "no number", "number"]
    assert [one.answer and one.answer["text"] for one in found] == ["1", None, "2", None, None, "7"]
    assert [one.error and one.error.code for one in found] == [
        *(None, "WRONG_TYPE", None, "DUPLICATE_ID", "ANSWER_MISMATCH", None)
    ]
    assert found[4].error is not None
    assert found[4].error.detail == "x"
    assert found[0].parameters == {"max_tokens": 5}
    assert found[2].parameters == {"temperature": 2}
    assert found[5].parameters == {"json_schema": {"type": "integer"}}
    assert stack.run_results.settled_until(run.id) == 6


def test_what_never_ran_is_open_also_if_somebody_else_has_its_answer(stack: WorkerServices) -> None:
    FakeProvider().serve(stack)
    work(stack, stack.runs.generate(["three"], provider="fake").id)
    run = stack.runs.generate(["one", "two", "three", "four"], provider="fake")
    with stack.ledger.transaction() as unit:
        unit.session.execute(text('UPDATE jobs SET request = \'{"first": 1, "last": 2}\''))
    (shard,) = shards(stack, run.id)
    execute(stack, shard)
    stack.runs.cancel(run.id)
    found = lines(stack, run.id)
    assert [one.state for one in found] == ["succeeded", "succeeded", "open", "open"]
    assert [one.answer is None for one in found] == [False, False, True, True]
    assert stack.run_results.settled_until(run.id) == 2
    # It goes on where it stopped.
    again = work(stack, stack.runs.retry(run.id).id)
    assert (again.state, again.succeeded, again.reused) == (RunState.COMPLETED, 4, 1)
    assert [one.state for one in lines(stack, run.id)] == ["succeeded"] * 4


def test_lines_of_embeddings_have_their_vectors(stack: WorkerServices) -> None:
    texts = [f"Day {number} was quiet." for number in range(5)]
    run = work(stack, stack.runs.embed([*texts, ""], provider="local", skip_bad=True).id)
    found = lines(stack, run.id)
    whole = {one.position: one.vector for one in stack.run_results.produced(run.id)}
    assert [one.state for one in found] == [*["succeeded"] * 5, "failed"]
    for one in found[:5]:
        assert one.vector is not None
        assert np.array_equal(one.vector, whole[one.position])  # type: ignore[arg-type]
    assert found[5].vector is None
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("DELETE FROM embeddings"))
    gone = lines(stack, run.id)
    assert {(one.state, one.vector is None) for one in gone[:5]} == {("succeeded", True)}


def test_a_run_without_any_vector_yet_has_open_lines(stack: WorkerServices) -> None:
    FakeProvider().serve(stack)
    run = stack.runs.embed(["one", "two"], provider="fake")
    assert [(one.state, one.vector) for one in lines(stack, run.id)] == [("open", None)] * 2
    with pytest.raises(NotFound):
        lines(stack, UUID(int=1))
    version = Span(version=-1)
    with pytest.raises(WrongState, match="was changed while it was read"):
        lines(stack, run.id, version)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 12), st.none() | st.integers(0, 12), st.sampled_from([1, 300, 10**7]))
def test_reading_may_begin_at_any_line(
    stack: WorkerServices, after: int, until: int | None, most_bytes: int
) -> None:
    with stack.ledger.transaction() as unit:
        known = unit.session.scalar(text("SELECT id FROM runs"))
    if known is None:
        FakeProvider().serve(stack)
        items = [{"prompt": f"{n}" if n % 3 else "", "n": n} for n in range(1, 11)]
        known = work(stack, stack.runs.generate(items, provider="fake", skip_bad=True).id).id
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(page_columns, "MOST_BYTES", most_bytes)
        found = lines(stack, known, Span(after, until))
    last = 10 if until is None else min(until, 10)
    assert [one.position for one in found] == list(range(after + 1, last + 1))
    for one in found:
        assert (one.state == "failed") == (one.position % 3 == 0)
        assert json.dumps(one.metadata) == ("{}" if one.error else f'{{"n": {one.position}}}')
