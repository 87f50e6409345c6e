"""Deadlines, retention and retries of many jobs."""

import time
from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from promptstack.config.names import Queue
from promptstack.config.settings import Settings
from promptstack.repositories.errors import LedgerSlow
from promptstack.repositories.jobs.records import BeginStep, NewCall
from promptstack.repositories.models import AttemptState, JobState
from promptstack.repositories.session import Ledger
from promptstack.services.jobs.views import JobView
from promptstack.services.maintenance.reconciler import Cleanup
from promptstack.simulator.process import SimulatorProcess
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute, retry_many
from tests.processes import Process, wait_until
from tests.simulators import ForkedSimulator


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with ForkedSimulator() as running:
        yield running


@pytest.fixture
def remote(
    environment: dict[str, str], simulator: SimulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WorkerServices]:
    simulator.reset()
    monkeypatch.setenv("OPENAI_BASE_URL", simulator.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with WorkerServices.open(Settings(_env_file=None)) as stack:
        yield stack


def in_flight(simulator: SimulatorProcess) -> int:
    return int(simulator.stats()["in_flight"])


# Deadlines and cancels


def test_a_call_gets_no_more_time_than_its_job_has(
    remote: WorkerServices, simulator: SimulatorProcess
) -> None:
    simulator.control({"kind": "hang"})
    began = time.monotonic()
    job = remote.jobs.enqueue_generation("Why?", provider="openai", expires_in=1.0)
    execute(remote, job.id)
    assert time.monotonic() - began < 20, "the provider's own time-out is 120 s"
    ended = remote.jobs.get(job.id)
    assert (ended.state, ended.error_code) == (JobState.EXPIRED, "EXPIRED")
    [call] = remote.jobs.get_attempts(job.id)
    assert (call.state, call.error_code, call.billing) == ("failed", "EXPIRED", "unknown")


def test_a_cancelled_job_s_call_is_closed_within_two_seconds(
    remote: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    """With the heartbeat that a worker has by default."""
    simulator.control({"kind": "hang"})
    start_worker(HEARTBEAT_SECONDS="1", WORKER_LOST_SECONDS="15")
    job = remote.jobs.enqueue_generation("Why?", provider="openai")
    wait_until(lambda: in_flight(simulator) == 1, "the call to be open")
    remote.jobs.cancel(job.id)
    cancelled = time.monotonic()
    wait_until(lambda: in_flight(simulator) == 0, "the call to be closed")
    took = time.monotonic() - cancelled
    assert took < 4, f"{took:.1f} s; 2 s on a machine with nothing else to do"
    wait_until(
        lambda: remote.jobs.get_attempts(job.id)[0].state is AttemptState.CANCELLED,
        "the call to be settled",
    )


# Retention


def test_what_ended_long_ago_goes_and_frees_its_key(stack: WorkerServices) -> None:
    old = end(stack, "cancel", key="k")
    fresh = end(stack, "cancel")
    open_ = stack.jobs.enqueue_generation("x")
    with stack.ledger.transaction() as unit:
        query = text("UPDATE jobs SET finished_at = now() - interval '2 days' WHERE id = :id")
        unit.session.execute(query, {"id": old.id})
        everything = text("UPDATE jobs SET created_at = now() - interval '9 days'")
        unit.session.execute(everything)
    Cleanup(stack.ledger, jobs_seconds=86_400.0, attempts_seconds=0.0).run_once()
    assert {job.id for job in stack.jobs.get_many()} == {fresh.id, open_.id}
    again = stack.jobs.enqueue_generation("something else", idempotency_key="k")
    assert again.id != old.id


def test_more_than_one_batch_goes_in_a_round_until_its_time_is_over(stack: WorkerServices) -> None:
    """Jobs may end faster than one batch a round."""
    fill = """
        INSERT INTO jobs (id, kind, state, provider, model, request, request_hash, max_retries,
                          expires_at, finished_at)
        SELECT gen_random_uuid(), 'generation', 'succeeded', 'demo', 'demo', '{}', '', 3, now(),
               now() - interval '2 days'
        FROM generate_series(1, 2200)
    """
    with stack.ledger.transaction() as unit:
        unit.session.execute(text(fill))

    def left_after(*times: float) -> int:
        timer = iter(times).__next__
        days = {"jobs_seconds": 86_400.0, "attempts_seconds": 86_400.0}
        Cleanup(stack.ledger, **days, timer=timer).run_once()
        with stack.ledger.transaction() as unit:
            return int(unit.session.scalar(text("SELECT count(*) FROM jobs")) or 0)

    assert left_after(0.0, 1.0, 60.0) == 1_200
    assert left_after(*[0.0] * 10) == 0


def test_nothing_goes_where_retention_is_zero(stack: WorkerServices) -> None:
    old = end(stack, "cancel")
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("UPDATE jobs SET finished_at = now() - interval '20 years'"))
    Cleanup(stack.ledger, jobs_seconds=0.0, attempts_seconds=0.0).run_once()
    assert stack.jobs.get(old.id).state is JobState.CANCELLED


# Retries of many


def end(stack: WorkerServices, how: str = "fail", *, key: str | None = None) -> JobView:
    job = stack.jobs.enqueue_generation("x", idempotency_key=key)
    with stack.ledger.transaction() as unit:
        claim = unit.steps.claim(job.id, stack.worker_id)
        assert claim is not None
        match how:
            case "fail":
                unit.steps.fail(claim, "PROVIDER_TIMEOUT", "too slow")
            case "refuse":
                unit.steps.fail(claim, "CONTENT_REFUSED", "no")
            case "succeed":
                unit.steps.succeed(claim, {"text": "y"})
            case "cancel":
                unit.jobs.cancel(job.id)
    return job


def states(stack: WorkerServices) -> dict[UUID, JobState]:
    return {job.id: job.state for job in stack.jobs.get_many(limit=2_000)}


def test_all_of_an_outage_is_queued_again_and_nothing_else(stack: WorkerServices) -> None:
    slow = [end(stack) for _ in range(3)]
    others = [end(stack, how) for how in ("refuse", "succeed", "cancel")]
    before = states(stack)
    assert retry_many(stack, error="PROVIDER_TIMEOUT") == 3
    after = states(stack)
    assert {after[job.id] for job in slow} == {JobState.QUEUED}
    assert all(after[job.id] == before[job.id] for job in others)
    # The reconciler publishes them, and knows that they are not new.
    assert stack.reconciler.run_once()["messages"] == 3


def claimed(stack: WorkerServices, **how: object) -> UUID:
    job = stack.jobs.enqueue_generation("x", **how)  # type: ignore[arg-type]
    with stack.ledger.transaction() as unit:
        assert unit.steps.claim(job.id, uuid4()) is not None
    return job.id


def queue_of(stack: WorkerServices, job_id: UUID) -> str:
    with stack.ledger.transaction() as unit:
        job = unit.jobs.get(job_id)
        assert job is not None
        return job.queue


def test_jobs_of_a_dead_worker_do_not_wait_behind_newer_ones(
    stack: WorkerServices,
) -> None:
    freed, handed_back, bulk = claimed(stack), claimed(stack), claimed(stack, bulk=True)
    with stack.ledger.transaction() as unit:
        assert unit.steps.release(handed_back, 1)
        assert {job.queue for job in unit.maintenance.free_lost(60.0)} == {
            "resumed",
            "generation-bulk",
        }
    assert queue_of(stack, freed) == queue_of(stack, handed_back) == Queue.RESUMED
    assert queue_of(stack, bulk) == Queue.GENERATION_BULK


def test_a_locked_job_is_freed_later_and_delays_no_other(
    stack: WorkerServices,
) -> None:
    written, other = claimed(stack), claimed(stack)
    with stack.ledger.transaction() as frozen:
        frozen.session.execute(
            text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": written}
        )
        with stack.ledger.transaction() as unit:
            assert [job.id for job in unit.maintenance.free_lost(60.0)] == [other]
    with stack.ledger.transaction() as unit:
        assert [job.id for job in unit.maintenance.free_lost(60.0)] == [written]


def test_a_process_that_freezes_within_a_transaction_loses_its_locks(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptstack.repositories.timeouts.IDLE_SECONDS", 1)
    ledger = Ledger(stack.database_url)

    def is_free() -> bool:
        with stack.ledger.transaction() as unit:
            return unit.try_lock("reconciler")

    def freeze() -> None:
        with ledger.transaction() as frozen:
            assert frozen.try_lock("reconciler")
            assert not is_free()
            wait_until(is_free, "the lock to be free again")
            frozen.now()

    with pytest.raises(LedgerSlow):
        freeze()
    with ledger.transaction() as again:
        assert again.try_lock("reconciler")
    ledger.close()


def test_a_dead_workers_call_for_a_cancelled_job_does_not_stay_in_flight(
    stack: WorkerServices,
) -> None:
    worker, job = uuid4(), stack.jobs.enqueue_generation("x")
    with stack.ledger.transaction() as unit:
        unit.heartbeats.beat(worker, "host", 1)
        claim = unit.steps.claim(job.id, worker)
        assert claim is not None
        unit.attempts.begin([BeginStep(claim, NewCall(0, "demo", "demo-1"))])
    stack.jobs.cancel(job.id)
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("UPDATE workers SET heartbeat_at = now() - interval '2 h'"))
    stack.reconciler.run_once()
    [call] = stack.jobs.get_attempts(job.id)
    assert (call.state, call.billing) == (AttemptState.LOST, "unknown")


def test_a_worker_that_is_told_to_stop_begins_no_call(
    remote: WorkerServices, simulator: SimulatorProcess
) -> None:
    """It would be cut off when the grace is over, and paid for again."""
    job = remote.jobs.enqueue_generation("Why?", provider="openai")
    remote.active_jobs.let_none_begin()
    execute(remote, job.id)
    handed_back = remote.jobs.get(job.id)
    assert (handed_back.state, handed_back.failures) == (JobState.QUEUED, 0)
    assert remote.jobs.get_attempts(job.id) == []
    assert simulator.ledger() == {}
