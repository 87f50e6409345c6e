"""Answers that take long to be judged: their items end, their money is kept, and others go on."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from threading import Event, Thread
from typing import Any

import pytest

from promptstack.config.settings import Settings
from promptstack.repositories.run_models import RunState
from promptstack.services.execution.content_calls import Call
from promptstack.services.runs.json_schema.answers import AnswerMismatch
from promptstack.services.runs.shards.generation_workload import GenerationWorkload
from promptstack.services.runs.shards.validation import ValidationLimits
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.jobs import execute
from tests.processes import wait_until
from tests.runs import failures, in_ledger, one, work

SCHEMA: dict[str, Any] = {"items": {"allOf": [{"type": "integer"}] * 5}}
LONG = json.dumps([1] * 200)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_judging_steps": 200})


@pytest.fixture(autouse=True)
def provider(stack: WorkerServices) -> None:
    says = FakeProvider().serve(stack)
    says.answer = lambda prompt: prompt


def test_an_answer_that_cannot_be_judged_ends_its_item_and_is_kept(stack: WorkerServices) -> None:
    run = stack.runs.generate(["[1]", LONG, '["x"]', "[2]"], provider="fake", json_schema=SCHEMA)
    done = work(stack, run.id)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 2, 2)
    assert failures(stack, done) == {"2": "ANSWER_NOT_JUDGED", "3": "ANSWER_MISMATCH"}
    failed = next(iter(stack.run_results.failed(run.id)))
    assert (failed.detail, "MAX_JUDGING_STEPS" in failed.error) == (LONG, True)
    # Each was paid for once, and it is on the books.
    assert in_ledger(stack, "SELECT count(*) FROM attempts WHERE billing = 'billed'") == 4


@pytest.fixture
def slow(stack: WorkerServices, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Event, Event]]:
    """Judging is held up: the first event says that it is begun, the second lets it go on."""
    begun, go_on, judged = Event(), Event(), count()

    def validate(self: GenerationWorkload, call: Call, answer: Any) -> AnswerMismatch | None:
        begun.set()
        go_on.wait(60.0)
        return None if next(judged) < 3 else AnswerMismatch("It is judged too late.")

    monkeypatch.setattr(GenerationWorkload, "validate", validate)
    limits = ValidationLimits(at_once_seconds=0.0, last_seconds=-1.0)
    stack.shard_tools = replace(stack.shard_tools, validation_limits=limits)
    yield begun, go_on
    go_on.set()


def test_a_run_that_is_cancelled_while_it_judges_ends_and_keeps_all_answers(
    stack: WorkerServices, slow: tuple[Event, Event]
) -> None:
    begun, go_on = slow
    prompts = [f"[{n}]" for n in range(20)]
    run = stack.runs.generate(prompts, provider="fake", json_schema=SCHEMA, in_flight=20)
    (shard,) = one(stack, "SELECT id FROM jobs")
    working = Thread(target=execute, args=(stack, shard))
    working.start()
    assert begun.wait(30.0)
    answered = "SELECT count(*) FROM attempts"
    wait_until(lambda: in_ledger(stack, answered) == 20, "all calls to be made")
    stack.runs.cancel(run.id)
    go_on.set()
    working.join(30.0)
    assert not working.is_alive()
    assert stack.jobs.get(shard).state.is_final
    # One was judged in time; what the others are, nobody knows, but they are kept.
    kept = failures(stack, run)
    assert set(kept.values()) == {"ANSWER_NOT_JUDGED"}
    assert 1 <= stack.runs.get(run.id).succeeded <= 3
    assert in_ledger(stack, "SELECT count(*) FROM outcomes") == 20
    assert in_ledger(stack, "SELECT count(*) FROM attempts WHERE billing <> 'billed'") == 0


def test_a_run_with_a_schema_that_is_beyond_the_bounds_by_now_ends(stack: WorkerServices) -> None:
    run = stack.runs.generate(["[1]"], provider="fake", json_schema=SCHEMA)
    with WorkerServices.open(stack.settings.model_copy(update={"max_schema_nodes": 3})) as later:
        FakeProvider().serve(later)
        done = work(later, run.id)
    assert (done.succeeded, done.failed) == (0, 1)
    assert failures(stack, done) == {"1": "INVALID_INPUT"}
