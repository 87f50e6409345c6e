"""A worker is dead when its heartbeats stop, however old its jobs are."""

from datetime import datetime
from uuid import uuid4

import pytest

from promptstack.repositories.jobs.records import BeginStep, NewCall
from promptstack.repositories.models import JobState
from promptstack.repositories.signs import LivenessSigns, SignsRepository
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.execution.heartbeat import Heartbeat
from promptstack.services.maintenance.liveness import Liveness
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.jobs import attempts, claimed, generate, row, run, sql, state
from tests.reconcilers import Clock, new_reconciler, reconciler_of


def test_a_worker_that_claims_is_alive(stack: WorkerServices, provider: FakeProvider) -> None:
    """One whose heartbeats are late must not pay for jobs that are freed at once."""
    now = [0.0]
    stack.heartbeat = Heartbeat(
        stack.heartbeat_ledger,
        stack.active_jobs,
        stack.worker_id,
        providers=[],
        lost_seconds=60.0,
        clock=lambda: now[0],
    )
    stack.heartbeat.beat()
    now[0] = 3_600.0
    sql(stack, "UPDATE workers SET heartbeat_at = now() - interval '1 h'")
    claims = []

    def look() -> None:
        with stack.ledger.transaction() as unit:
            claims.append(len(unit.maintenance.free_lost(60.0)))

    provider.on_call = look
    assert run(stack, generate(stack)).state is JobState.SUCCEEDED
    assert claims == [0]


def test_a_heartbeat_timeout_frees_the_jobs_of_the_dead_worker_and_no_others(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    reconciler = reconciler_of(stack, Clock())
    dead, gone = uuid4(), uuid4()
    with stack.ledger.transaction() as unit:
        unit.heartbeats.beat(dead, "host", 1)
    jobs = {worker: generate(stack) for worker in (stack.worker_id, dead, gone)}
    for worker, job in jobs.items():
        claimed(stack, job, worker)
    # A long job of a live worker is no orphan.
    sql(stack, "UPDATE jobs SET started_at = now() - interval '3 days', created_at = started_at")
    silence = "UPDATE workers SET heartbeat_at = now() - make_interval(secs => :s) WHERE id = :id"
    sql(stack, silence, s=14, id=dead)
    reconciler.run_once()
    assert state(stack, jobs[dead]) is JobState.RUNNING
    assert state(stack, jobs[gone]) is JobState.QUEUED  # its worker's row is not even there
    sql(stack, silence, s=16, id=dead)
    reconciler.run_once()
    freed = row(stack, jobs[dead])
    assert (freed.state, freed.attempt, freed.failures) == (JobState.QUEUED, 1, 1)
    assert (freed.worker_id, freed.error_code) == (None, "WORKER_LOST")
    assert freed.published_at is not None
    assert state(stack, jobs[stack.worker_id]) is JobState.RUNNING
    assert run(stack, jobs[dead]).state is JobState.SUCCEEDED


def test_a_job_that_kills_its_workers_ends(stack: WorkerServices, provider: FakeProvider) -> None:
    reconciler = reconciler_of(stack, Clock())
    job = generate(stack, max_retries=2)
    for failures in (1, 2, 3):
        lost = claimed(stack, job, uuid4())
        with stack.ledger.transaction() as unit:
            unit.attempts.begin([BeginStep(lost, NewCall(0, lost.provider, lost.model))])
        reconciler.run_once()
        assert row(stack, job).failures == failures
    ended = stack.jobs.get(job.id)
    assert (ended.state, ended.error_code, ended.attempt) == (JobState.FAILED, "WORKER_LOST", 3)
    assert [attempt.state for attempt in attempts(stack, job)] == ["lost"] * 3


def test_no_worker_counts_as_dead_for_a_time_in_which_the_ledger_was_away(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    clock = Clock()
    job = generate(stack)
    claimed(stack, job)
    sql(stack, "UPDATE workers SET heartbeat_at = now() - interval '1 h'")
    reconciler = new_reconciler(stack, clock)
    # Nobody had ever looked; it lost its clock; it hung, or its host slept, of which 20 s don't
    # count, and then the living get a moment to find it again.
    for happens, steps in (
        (0.0, (0.0, 5.0, 5.0, 4.9)),
        (-3_600.0, (0.0, 5.0, 5.0)),
        (20.0, (0.0, 4.9)),
    ):
        clock.move(happens)
        for passed in steps:
            clock.move(passed)
            reconciler.run_once()
            assert state(stack, job) is JobState.RUNNING
    clock.move(0.2)
    reconciler.run_once()
    assert state(stack, job) is JobState.QUEUED


def test_no_worker_counts_as_dead_for_a_time_in_which_the_ledger_hung_within_a_round(
    stack: WorkerServices, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger was watched, hung for 20 s, and the round went on before any heartbeat."""
    clock, real = Clock(), SignsRepository.of_liveness
    reconciler = reconciler_of(stack, clock)
    job = generate(stack)
    claimed(stack, job)

    def hang(self: SignsRepository, lost_seconds: float, *, within: float) -> LivenessSigns:
        clock.move(20.0)
        sql(stack, "UPDATE workers SET heartbeat_at = now() - interval '20 s'")
        signs = real(self, lost_seconds, within=within)
        assert signs.orphaned
        return signs

    monkeypatch.setattr(SignsRepository, "of_liveness", hang)
    reconciler.run_once()
    assert state(stack, job) is JobState.RUNNING


def test_the_ledgers_clock_is_read_under_the_lock_of_the_watch(stack: WorkerServices) -> None:
    """A time read before could be older than the last round's: as if the clock was put back."""
    free: list[bool] = []

    def clock(unit: UnitOfWork) -> datetime:
        with stack.ledger.transaction() as other:
            free.append(other.try_lock("watch"))
        return unit.now()

    Liveness(stack.ledger, worker_lost_seconds=12.0, clock=clock).run_once()
    assert free[0] is False


def test_a_new_process_knows_what_others_have_seen(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    """Where workers come and go, each would else wait anew before it frees what the dead held."""
    clock = Clock()
    reconciler_of(stack, clock)
    job = generate(stack)
    claimed(stack, job)
    sql(stack, "UPDATE workers SET heartbeat_at = now() - interval '16 s'")
    clock.move(1.0)
    new_reconciler(stack, clock).run_once()
    assert state(stack, job) is JobState.QUEUED


def test_a_job_recorded_as_ours_that_is_not_active_is_handed_back(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    job, other = generate(stack), generate(stack)
    claimed(stack, job)
    claimed(stack, other, uuid4())
    stack.heartbeat.beat()
    assert (state(stack, job), row(stack, job).failures) == (JobState.QUEUED, 0)
    assert state(stack, other) is JobState.RUNNING


def test_an_active_old_attempt_does_not_keep_a_newer_recorded_one(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    """The newer one was claimed over a connection that broke before it could tell us."""
    job = generate(stack)
    with stack.active_jobs.enter(job.id) as old:
        old.attempt = claimed(stack, job).attempt
        stack.heartbeat.beat()
        assert state(stack, job) is JobState.RUNNING
        with stack.ledger.transaction() as unit:
            assert unit.steps.release(job.id, old.attempt)
        claimed(stack, job)
        stack.heartbeat.beat()
        assert state(stack, job) is JobState.QUEUED
