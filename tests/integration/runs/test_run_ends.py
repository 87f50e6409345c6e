"""How runs end, whatever goes wrong meanwhile: none is left, and none is tried for ever."""

import logging
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from promptstack.api.cli.main import build
from promptstack.repositories.content.vector_tables import index_name
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.errors import LedgerUnavailable
from promptstack.repositories.run_models import Run, RunState
from promptstack.repositories.runs.items import ItemRepository, Slice
from promptstack.repositories.runs.outcomes import Counted, OutcomeRepository
from promptstack.repositories.runs.runs import RunRepository
from promptstack.repositories.runs.scheduling import SchedulingRepository
from promptstack.services.errors import NotFound
from promptstack.services.runs.lifecycle import RunLifecycle
from promptstack.services.runs.views import RunView
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute
from tests.runs import in_ledger, work

FINALIZATIONS = "SELECT count(*) FROM jobs WHERE kind = 'finalization'"
OVERDUE = "UPDATE runs SET expires_at = now() - interval '1 second'"
OLD = "UPDATE runs SET finished_at = now() - interval '2 days'"
DAY = 86_400.0


def change(stack: WorkerServices, statement: str) -> None:
    with stack.ledger.transaction() as unit:
        unit.session.execute(text(statement))


def embed(stack: WorkerServices, about: str, count: int = 20) -> RunView:
    return stack.runs.embed([f"Text {n} about {about}." for n in range(count)], provider="local")


def generate(stack: WorkerServices, count: int = 3) -> RunView:
    return stack.runs.generate([f"Say {n}." for n in range(count)], provider="demo")


def model_of(stack: WorkerServices, run: RunView) -> EmbeddingModel:
    with stack.ledger.transaction() as unit:
        model = unit.embeddings.find_model(run.provider, run.model)
    assert model is not None
    return model


def has_index(stack: WorkerServices, run: RunView) -> bool:
    name = index_name(model_of(stack, run))
    query = f"SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('{name}')"
    return bool(in_ledger(stack, query))


def let_no_index_be_built(stack: WorkerServices, run: RunView) -> str:
    """Take its name."""
    name = index_name(model_of(stack, run))
    change(stack, f"DROP INDEX IF EXISTS {name}")
    change(stack, f"CREATE TABLE {name} ()")
    return name


# Indexes


def test_a_run_whose_index_cannot_be_built_is_completed_without_it(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stack.settings, "job_max_retries", 1)
    first = work(stack, embed(stack, "the sea").id)
    name = let_no_index_be_built(stack, first)
    with caplog.at_level(logging.ERROR):
        done = work(stack, embed(stack, "the woods").id)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 20, 0)
    assert done.error_code == "INDEX_NOT_BUILT"
    assert "already exists" in str(done.error)
    assert str(done.id) in caplog.text
    shown = CliRunner().invoke(build(), ["runs", "show", str(done.id)])
    assert "already exists" in shown.output
    assert in_ledger(stack, f"{FINALIZATIONS} AND run_id = '{done.id}'") == 2
    assert len(stack.search.search("the woods", limit=30, provider="local")) == 30
    change(stack, f"DROP TABLE {name}")
    later = work(stack, embed(stack, "the stars").id)
    assert (later.state, later.error_code) == (RunState.COMPLETED, None)
    assert has_index(stack, later)


def test_a_run_that_cannot_be_completed_is_not_tried_for_ever(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: OutcomeRepository, run_id: UUID) -> Counted:
        raise RuntimeError("Something is wrong with its outcomes.")

    monkeypatch.setattr(stack.settings, "job_max_retries", 0)
    run = generate(stack)
    monkeypatch.setattr(OutcomeRepository, "count_outcomes", fails)
    ended = work(stack, run.id)
    assert (ended.state, ended.succeeded) == (RunState.FAILED, 3)
    assert in_ledger(stack, FINALIZATIONS) == 2


def test_who_ends_a_run_and_dies_leaves_its_model_an_index(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(stack, embed(stack, "the sea").id)
    run = embed(stack, "the woods")
    assert not has_index(stack, run)
    # Between two shards: there is none by which it would be seen that the end was broken off.
    change(stack, "DELETE FROM jobs")

    def dies(self: RunLifecycle, ended: Run) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(RunLifecycle, "cancel_shards", dies)
        with pytest.raises(SystemExit):
            stack.runs.cancel(run.id)
    stack.run_maintenance.run_once(0.0)
    assert work(stack, run.id).state is RunState.CANCELLED
    assert has_index(stack, run)


def test_a_start_that_fails_leaves_the_index(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(stack, embed(stack, "the sea").id)
    prepared = stack.runs.prepare_embedding(["One about the woods."], provider="local")
    start = RunRepository.start

    def breaks(self: RunRepository, run_id: UUID, **values: Any) -> Run | None:
        started = start(self, run_id, **values)
        # Found when it is committed.
        self._session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return started

    with monkeypatch.context() as patched:
        patched.setattr(RunRepository, "start", breaks)
        with pytest.raises(LedgerUnavailable):
            stack.runs.start(prepared.run_id)
    run = stack.runs.get(prepared.run_id)
    assert run.state is RunState.PREPARING
    assert has_index(stack, run)
    assert work(stack, stack.runs.start(run.id).id).state is RunState.COMPLETED


def test_an_index_that_cannot_be_dropped_keeps_no_run_from_its_start(
    stack: WorkerServices, caplog: pytest.LogCaptureFixture
) -> None:
    first = work(stack, embed(stack, "the sea").id)
    let_no_index_be_built(stack, first)
    run = embed(stack, "the woods")
    assert run.state is RunState.RUNNING
    assert "could not be dropped" in caplog.text


# Deadlines


def test_a_run_whose_items_are_done_does_not_expire(stack: WorkerServices) -> None:
    run = embed(stack, "the sea")
    (shard,) = [in_ledger(stack, "SELECT id FROM jobs WHERE kind = 'shard'")]
    execute(stack, shard)
    assert stack.runs.get(run.id).state is RunState.FINALIZING
    change(stack, OVERDUE)
    stack.run_maintenance.run_once(0.0)
    # Nor where it was found to be overdue just before.
    assert stack.run_lifecycle.end(run.id, RunState.EXPIRED) is None
    assert stack.runs.get(run.id).state is RunState.FINALIZING
    assert in_ledger(stack, f"{FINALIZATIONS} AND expires_at > now() + interval '1 hour'") == 1
    assert work(stack, run.id).state is RunState.COMPLETED


def test_a_run_whose_last_item_ended_in_time_does_not_expire(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = generate(stack)
    with monkeypatch.context() as patched:
        patched.setattr(RunLifecycle, "wake", lambda _: None)
        execute(stack, in_ledger(stack, "SELECT id FROM jobs"))
    assert stack.runs.get(run.id).state is RunState.RUNNING
    change(stack, OVERDUE)
    stack.run_maintenance.run_once(0.0)
    assert work(stack, run.id).state is RunState.COMPLETED


def test_a_run_whose_shards_expired_is_expired_and_can_be_retried(stack: WorkerServices) -> None:
    run = generate(stack)
    # A moment before the run's own deadline.
    change(stack, "UPDATE jobs SET expires_at = now() - interval '1 second'")
    with stack.ledger.transaction() as unit:
        assert len(unit.maintenance.expire_overdue()) == 1
    stack.run_lifecycle.run_once()
    ended = stack.runs.get(run.id)
    assert (ended.state, ended.error_code) == (RunState.EXPIRED, "EXPIRED")
    assert (ended.succeeded, ended.failed) == (0, 0)
    stack.runs.retry(run.id)
    done = work(stack, run.id)
    assert (done.state, done.succeeded) == (RunState.COMPLETED, 3)


def test_a_run_whose_shard_just_failed_for_the_whole_account_is_not_completed(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = generate(stack)
    # After it was looked for, and before what is done is.
    monkeypatch.setattr(SchedulingRepository, "find_failing", lambda *_: [])
    change(
        stack,
        "UPDATE jobs SET state = 'failed', finished_at = now(), error_code = 'QUOTA_EXHAUSTED', "
        "error = 'Nothing is left.'",
    )
    stack.run_lifecycle.run_once()
    ended = stack.runs.get(run.id)
    assert (ended.state, ended.error_code) == (RunState.FAILED, "QUOTA_EXHAUSTED")
    assert (ended.error, ended.failed) == ("Nothing is left.", 0)


# One bad run among many


def test_a_run_that_cannot_be_ended_keeps_no_other_from_its_end(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad, *others = [generate(stack, 1) for _ in range(3)]
    change(stack, OVERDUE)
    finish = RunRepository.finish

    def fails(self: RunRepository, run_id: UUID, *how: Any, **more: Any) -> Run | None:
        if run_id == bad.id:
            raise RuntimeError("Something is wrong with this run.")
        return finish(self, run_id, *how, **more)

    monkeypatch.setattr(RunRepository, "finish", fails)
    stack.run_maintenance.run_once(0.0)
    assert {stack.runs.get(run.id).state for run in others} == {RunState.EXPIRED}
    assert stack.runs.get(bad.id).state is RunState.RUNNING
    assert str(bad.id) in caplog.text

    def is_away(*_: Any, **__: Any) -> None:
        raise LedgerUnavailable("It is away.")

    monkeypatch.setattr(RunRepository, "finish", is_away)
    with pytest.raises(LedgerUnavailable):
        stack.run_maintenance.run_once(0.0)


def test_a_run_that_cannot_be_served_keeps_no_other_from_its_shards(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stack.settings, "worker_shards", 3)
    prepared = [
        stack.runs.prepare_generation(["Say it."], provider="demo").run_id for _ in range(3)
    ]
    next_slice = ItemRepository.next_slice

    def fails(
        self: ItemRepository, run_id: UUID, position: int, *most: int, **how: Any
    ) -> Slice | None:
        if run_id == prepared[0]:
            raise RuntimeError("Something is wrong with this run.")
        return next_slice(self, run_id, position, *most, **how)

    monkeypatch.setattr(ItemRepository, "next_slice", fails)
    for run_id in prepared:
        stack.runs.start(run_id)
    assert in_ledger(stack, "SELECT count(DISTINCT run_id) FROM jobs") == 2
    assert str(prepared[0]) in caplog.text


def test_a_run_that_cannot_be_finalized_keeps_no_other_from_it(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [generate(stack, 1) for _ in range(3)]
    finalize = RunRepository.finalize

    def fails(self: RunRepository, run_id: UUID) -> Run | None:
        if run_id == runs[0].id:
            raise RuntimeError("Something is wrong with this run.")
        return finalize(self, run_id)

    monkeypatch.setattr(RunRepository, "finalize", fails)
    states = [work(stack, run.id).state for run in runs]
    assert states == [RunState.RUNNING, RunState.COMPLETED, RunState.COMPLETED]
    assert str(runs[0].id) in caplog.text


# Old runs


def test_a_run_that_is_being_deleted_cannot_be_retried(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptstack.services.runs.maintenance.PRUNED_AT_ONCE", 1)
    run = generate(stack)
    stack.runs.cancel(run.id)
    change(stack, OLD)
    stack.run_maintenance.run_once(DAY)
    assert in_ledger(stack, "SELECT count(*) FROM items") == 2
    with pytest.raises(NotFound):
        stack.runs.retry(run.id)
    with pytest.raises(NotFound):
        list(stack.run_results.produced(run.id))
    for _ in range(4):
        stack.run_maintenance.run_once(DAY)
    for table in ("items", "outcomes", "runs", "pruned_runs"):
        assert in_ledger(stack, f"SELECT count(*) FROM {table}") == 0


def test_a_run_that_is_being_retried_is_not_deleted(stack: WorkerServices) -> None:
    run = generate(stack)
    stack.runs.cancel(run.id)
    change(stack, OLD)
    with stack.ledger.transaction() as retrying:
        assert retrying.runs.lock(run.id) is not None
        stack.run_maintenance.run_once(DAY)
        retrying.runs.start(run.id)
    stack.run_maintenance.run_once(DAY)
    assert in_ledger(stack, "SELECT count(*) FROM items") == 3
    assert work(stack, run.id).state is RunState.COMPLETED


def test_results_of_a_run_that_is_deleted_while_they_are_read_do_not_look_complete(
    stack: WorkerServices,
) -> None:
    run = work(stack, generate(stack).id)
    reading = stack.run_results.produced(run.id, page=2)
    next(reading)
    change(stack, OLD)
    stack.run_maintenance.run_once(DAY)
    with pytest.raises(NotFound):
        list(reading)


def test_one_worker_at_a_time_deletes_what_is_old(stack: WorkerServices) -> None:
    run = generate(stack)
    stack.runs.cancel(run.id)
    job = stack.jobs.enqueue_generation("Say it.", provider="demo")
    stack.jobs.cancel(job.id)
    change(stack, "UPDATE runs SET finished_at = now() - interval '1 year'")
    change(stack, "UPDATE jobs SET finished_at = now() - interval '1 year' WHERE run_id IS NULL")
    old = f"SELECT (SELECT count(*) FROM runs) + count(*) FROM jobs WHERE id = '{job.id}'"
    with stack.ledger.transaction() as another:
        assert another.try_lock("prune")
        stack.reconciler.run_once()
    assert in_ledger(stack, old) == 2
    stack.reconciler.run_once()
    assert in_ledger(stack, old) == 0
