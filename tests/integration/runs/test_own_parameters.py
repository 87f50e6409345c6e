"""Requests of one file may ask differently: each item is asked as its own line says."""

import json
from decimal import Decimal
from typing import Any

import pytest

from promptstack.repositories.run_models import RunState
from promptstack.services.errors import InvalidInput
from promptstack.services.runs.intake.new_run import GenerationRunKeywords
from promptstack.services.runs.service import BadInputs
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.runs import failures, in_ledger, work


def schema(kind: str) -> dict[str, Any]:
    described = {"name": "x", "schema": {"type": kind}}
    return {"response_format": {"type": "json_schema", "json_schema": described}}


def line(custom_id: str, prompt: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "fake-1", "messages": messages, **body},
    }


@pytest.fixture
def provider(stack: WorkerServices) -> FakeProvider:
    says = FakeProvider().serve(stack)
    says.answer = lambda prompt: prompt
    return says


def test_each_item_is_asked_as_its_line_says(stack: WorkerServices, provider: FakeProvider) -> None:
    run = stack.runs.generate(
        [
            line("a", "one", temperature=0.5, max_tokens=10),
            line("b", "two", temperature=0.5, max_tokens=10),
            line("c", "three", max_tokens=20, stop="END"),
            line("d", "four"),
        ],
        provider="fake",
    )
    assert work(stack, run.id).succeeded == 4
    asked = {one.messages[0].content: one for one in provider.requests}
    said = {
        prompt: (one.temperature, one.max_tokens, one.stop, one.model)
        for prompt, one in asked.items()
    }
    # What a line leaves out it doesn't take from the first one.
    assert said == {
        "one": (0.5, 10, (), "fake-1"),
        "two": (0.5, 10, (), "fake-1"),
        "three": (None, 20, ("END",), "fake-1"),
        "four": (None, None, (), "fake-1"),
    }
    # What all ask alike is stored once.
    stored = "SELECT string_agg(position || coalesce(parameters::text, '-'), ' ' ORDER BY position)"
    assert in_ledger(stack, f"{stored} FROM items") == (
        '1- 2- 3{"stop": ["END"], "max_tokens": 20} 4{}'
    )


def test_equal_requests_are_paid_for_once_however_their_parameters_are_kept(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    warm, cold = {"temperature": 1.0}, {"temperature": 0.0}
    first = [line("a", "x", **warm), line("b", "x", **cold), line("c", "x", **cold)]
    done = work(stack, stack.runs.generate(first, provider="fake").id)
    assert (done.succeeded, done.reused, len(provider.requests)) == (3, 1, 2)
    # There the other parameters are the run's.
    again = [line("a", "x", **cold), line("b", "x", **warm)]
    done = work(stack, stack.runs.generate(again, provider="fake").id)
    assert (done.succeeded, done.reused, len(provider.requests)) == (2, 2, 2)


def test_each_answer_is_validated_by_the_schema_of_its_line(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    requests = [
        line("number", "1", **schema("integer")),
        line("text", json.dumps("x"), **schema("string")),
        line("wrong", json.dumps("x"), **schema("integer")),
        line("free", "no JSON"),
    ]
    done = work(stack, stack.runs.generate(requests, provider="fake").id)
    assert (done.state, done.succeeded) == (RunState.COMPLETED, 3)
    assert failures(stack, done) == {"wrong": "ANSWER_MISMATCH"}
    answers = {one.custom_id: one.answer or {} for one in stack.run_results.produced(done.id)}
    assert answers["number"]["json"] == 1
    assert answers["text"]["json"] == "x"
    assert "json" not in answers["free"]


def test_more_schemas_than_are_kept_are_each_their_lines_own(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    def one(number: int, said: int) -> dict[str, Any]:
        described = {"name": "x", "schema": {"const": number}}
        form = {"type": "json_schema", "json_schema": described}
        return line(f"{number}-{said}", str(said), response_format=form)

    requests = [one(n, said) for n in range(50) for said in (n, n + 1)]
    done = work(stack, stack.runs.generate(requests, provider="fake").id)
    assert done.succeeded == 50
    assert set(failures(stack, done)) == {f"{n}-{n + 1}" for n in range(50)}


def test_a_limit_of_the_cost_holds_for_each_line(
    stack: WorkerServices, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(stack.prices), "cost", lambda *_, **__: 0)
    how: GenerationRunKeywords = {"provider": "fake", "max_cost_usd": 1}
    good, bad = line("a", "x", max_tokens=5), line("b", "y")
    with pytest.raises(BadInputs, match="2: A limit of the cost needs max_tokens"):
        stack.runs.generate([good, bad], **how)
    stack.runs.generate([good, line("b", "z", max_tokens=6)], **how)
    run = stack.runs.generate([good, bad], provider="fake")
    stack.runs.cancel(run.id)
    with pytest.raises(InvalidInput, match="some lines of the run ask otherwise"):
        stack.runs.retry(run.id, max_cost_usd=Decimal(1))
    assert work(stack, stack.runs.retry(run.id).id).succeeded == 2


def test_what_a_run_will_take_is_estimated_line_by_line(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    requests = [
        line("a", "x" * 40, max_tokens=100),
        line("b", "y" * 40, max_tokens=1_000),
        line("c", "z" * 40),
    ]
    ready = stack.runs.prepare_generation(requests, provider="fake")
    stack.runs.discard(ready.run_id)
    alone = stack.runs.prepare_generation(requests[:1], provider="fake")
    stack.runs.discard(alone.run_id)
    unsaid = stack.runs.prepare_generation(requests[2:], provider="fake")
    stack.runs.discard(unsaid.run_id)
    assert ready.tokens == pytest.approx(2 * alone.tokens + 900 + unsaid.tokens, abs=2)


def test_a_line_whose_parameters_can_not_be_asked_for_is_refused_before_anything_is_paid(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    requests = [line("a", "x", seed=1), line("b", "x", temperature=9), line("c", "x", top_p=0.5)]
    with pytest.raises(InvalidInput) as refused:
        stack.runs.generate(requests, provider="fake")
    assert "2: " in str(refused.value)
    assert "3: Provider 'fake' does not know top_p" in str(refused.value)
    assert provider.requests == []
