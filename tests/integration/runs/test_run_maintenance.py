"""Runs that nobody works on: overdue, left midway, old; and vectors in two bytes a number."""

from collections.abc import Callable, Iterator
from threading import enumerate as enumerate_threads
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import text

from promptstack.repositories.errors import LedgerUnavailable
from promptstack.repositories.run_models import RunState
from promptstack.repositories.runs.runs import RunRepository
from promptstack.services.runs.intake import ingest as intake
from promptstack.services.runs.views import RunView
from promptstack.tasks.worker_services import WorkerServices
from tests.processes import Process, wait_until

ABANDONED = "UPDATE runs SET touched_at = now() - interval '2 hours'"
OVERDUE = "UPDATE runs SET expires_at = now() - interval '1 second'"
OLD = "UPDATE runs SET finished_at = now() - interval '2 days'"


def change(stack: WorkerServices, statement: str) -> None:
    with stack.ledger.transaction() as unit:
        unit.session.execute(text(statement))


def count(stack: WorkerServices, table: str) -> int:
    with stack.ledger.transaction() as unit:
        found: int = unit.session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
    return found


def finished(stack: WorkerServices, run: RunView) -> RunView:
    wait_until(lambda: stack.runs.get(run.id).state.is_final, "the end of the run")
    return stack.runs.get(run.id)


def test_a_run_whose_reader_went_away_is_not_accepted(stack: WorkerServices) -> None:
    prepared = stack.runs.prepare_embedding(["one", "two"])
    stack.run_maintenance.run_once(0.0)
    assert stack.runs.get(prepared.run_id).state is RunState.PREPARING
    change(stack, ABANDONED)
    stack.run_maintenance.run_once(0.0)
    left = stack.runs.get(prepared.run_id)
    assert (left.state, left.error_code) == (RunState.FAILED, "NOT_ACCEPTED")
    assert count(stack, "jobs") == 0


def test_a_source_that_is_silent_for_long_is_not_given_up(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "SHOWN_SECONDS", 0.05)
    show, away = RunRepository.show_reading, [LedgerUnavailable("The ledger is away.")]

    def show_or_fail(runs: RunRepository, run_id: UUID) -> None:
        if away:
            raise away.pop()
        show(runs, run_id)

    monkeypatch.setattr(RunRepository, "show_reading", show_or_fail)

    def slow() -> Iterator[str]:
        yield "one"
        change(stack, ABANDONED)
        recent = "runs WHERE touched_at > now() - interval '1 hour'"
        wait_until(lambda: count(stack, recent) == 1, "a sign that the source is still read")
        stack.run_maintenance.run_once(0.0)
        yield "two"

    run = stack.runs.embed(slow())
    assert (run.state, run.total) == (RunState.RUNNING, 2)
    assert away == []
    assert not [one for one in enumerate_threads() if one.name.startswith("intake")]


def test_an_overdue_run_ends_with_its_shards_and_can_be_retried(
    stack: WorkerServices, start_worker: Callable[..., Process]
) -> None:
    run = stack.runs.embed(["one", "two"])
    assert count(stack, "jobs WHERE state = 'queued' AND kind = 'shard'") == 1
    change(stack, OVERDUE)
    stack.run_maintenance.run_once(0.0)
    assert stack.runs.get(run.id).state is RunState.EXPIRED
    assert count(stack, "jobs WHERE state = 'cancelled' AND kind = 'shard'") == 1
    stack.runs.retry(run.id)
    start_worker()
    done = finished(stack, run)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 2, 0)


def test_an_old_run_is_deleted_with_its_items_and_its_vectors_stay(
    stack: WorkerServices, start_worker: Callable[..., Process]
) -> None:
    start_worker()
    run = finished(stack, stack.runs.embed(["one", "two"]))
    assert run.state is RunState.COMPLETED
    stack.run_maintenance.run_once(86_400.0)
    assert count(stack, "items") == 2
    change(stack, OLD)

    def is_gone() -> bool:
        stack.run_maintenance.run_once(86_400.0)
        return count(stack, "runs") == 0

    wait_until(is_gone, "the deletion of the run")
    assert (count(stack, "items"), count(stack, "outcomes")) == (0, 0)
    with stack.ledger.transaction() as unit:
        model = unit.embeddings.find_model("local", "wordllama-256")
        assert model is not None
        assert unit.embeddings.count(model) == 2
    again = finished(stack, stack.runs.embed(["one", "two"]))
    assert (again.reused, again.calls) == (2, 0)


def test_half_precision_vectors_are_nearly_the_same_and_are_found(
    stack: WorkerServices, start_worker: Callable[..., Process]
) -> None:
    start_worker(VECTOR_TYPE="halfvec")
    texts = [f"a text about the number {n}" for n in range(30)]
    run = finished(stack, stack.runs.embed(texts))
    assert (run.state, run.succeeded) == (RunState.COMPLETED, 30)
    assert count(stack, "half_embeddings") == 30
    assert count(stack, "embeddings") == 0
    vectors = [one.vector for one in stack.run_results.produced(run.id)]
    assert all(vector is not None and vector.dtype == np.float32 for vector in vectors)
    norms = [float(np.linalg.norm(vector)) for vector in vectors if vector is not None]
    assert np.allclose(norms, 1.0, atol=2e-3)
    assert stack.search.search(texts[7], limit=1)[0].text == texts[7]
    again = finished(stack, stack.runs.embed(texts))
    assert (again.reused, again.calls) == (30, 0)
