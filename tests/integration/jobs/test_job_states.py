"""The states of jobs, by random interleavings of everything that changes them.

Two workers, a person and the reconciler act on the real repository, each step a transaction of its
own, and a small model of docs/architecture.md says what must come of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from hypothesis import HealthCheck
from hypothesis import settings as effort
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, text

from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.jobs.steps import StepRepository
from promptstack.repositories.models import JobState
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.tasks.worker_services import WorkerServices

SILENCE = 60.0
"""Seconds after which a worker counts as dead."""
LATER = 3_600.0
WORKERS = 2

workers = st.integers(0, WORKERS - 1)
jobs = st.sampled_from([0, 0, 0, 1])
"""Mostly one job, so that much happens to it; the other must not change by it."""
recent = st.sampled_from([0, 0, 1, 2])
"""A claim by how long ago it was made: 0 is the last one."""


@dataclass
class Model:
    """What a job must be like."""

    id: UUID
    max_retries: int
    state: JobState = JobState.QUEUED
    attempt: int = 0
    failures: int = 0
    worker: UUID | None = None
    waits: bool = False
    overdue: bool = False
    is_published: bool = False
    result: dict[str, Any] | None = None
    claims: list[Claim] = field(default_factory=list)

    @property
    def is_there(self) -> bool:
        """Whether it can be claimed."""
        return self.state is JobState.QUEUED and not self.waits and not self.overdue

    def holds(self, claim: Claim) -> bool:
        return self.state is JobState.RUNNING and claim.attempt == self.attempt

    def takes_answer(self, claim: Claim) -> bool:
        """Whether an answer is stored: also one that comes late, if nobody else asks for one."""
        return not self.state.is_final and claim.attempt == self.attempt

    def leave(self, state: JobState) -> None:
        """Leave the hands of its worker."""
        self.state, self.worker = state, None
        # Back in the queue, it needs a new message.
        self.is_published = False


class JobStates(RuleBasedStateMachine):
    """Acts on the repository and on the model alike."""

    def __init__(self, ledger: Ledger, watcher: Connection) -> None:
        super().__init__()
        self.ledger = ledger
        self.watcher = watcher
        self.models: list[Model] = []
        self.workers = [uuid4() for _ in range(WORKERS)]
        self.silent: set[UUID] = set()
        self.results = 0

    @initialize(retries=st.lists(st.integers(0, 2), min_size=2, max_size=2))
    def begin(self, retries: list[int]) -> None:
        self.sql("DELETE FROM jobs")
        self.sql("DELETE FROM workers")
        self.models = [self.new_job(max_retries) for max_retries in retries]
        for worker in range(WORKERS):
            self.beat(worker)

    # What workers do

    @rule(job=jobs, worker=workers)
    def claim(self, job: int, worker: int) -> None:
        model, worker_id = self.models[job], self.workers[worker]
        with self.ledger.transaction() as unit:
            claim = unit.steps.claim(model.id, worker_id)
        assert (claim is not None) == model.is_there
        if claim is not None:
            model.attempt += 1
            model.state, model.worker = JobState.RUNNING, worker_id
            assert (claim.attempt, claim.worker_id) == (model.attempt, worker_id)
            assert (claim.failures, claim.max_retries) == (model.failures, model.max_retries)
            model.claims.append(claim)

    @precondition(lambda self: self.models[0].is_there)
    @rule(
        worker=workers,
        ending=st.sampled_from(["none", "none", "retry", "limit", "release", "lost", "lost"]),
    )
    def try_once(self, worker: int, ending: str) -> None:
        """A claim and what often comes of it, so that jobs get far in few steps."""
        self.claim(0, worker)
        match ending:
            case "retry":
                self.retry_later(0, 0, counts=True, delay=0.0)
            case "limit":
                self.retry_later(0, 0, counts=False, delay=LATER)
            case "release":
                self.release(0, 0)
            case "lost":
                self.lose_a_worker(leaves=False, is_seen=True)

    @precondition(lambda self: self.models[0].claims)
    @rule(job=jobs, ago=recent)
    def succeed(self, job: int, ago: int) -> None:
        self.results += 1
        result = {"text": f"answer {self.results}"}

        def then(model: Model) -> None:
            model.leave(JobState.SUCCEEDED)
            model.result = result

        self.store(
            job,
            ago,
            lambda unit, claim: unit.succeed(claim, result),
            then,
            may=Model.takes_answer,
        )

    @precondition(lambda self: self.models[0].claims)
    @rule(job=jobs, ago=recent)
    def fail(self, job: int, ago: int) -> None:
        def then(model: Model) -> None:
            model.leave(JobState.FAILED)
            model.failures += 1

        self.store(job, ago, lambda unit, claim: unit.fail(claim, "REFUSED", "no"), then)

    @precondition(lambda self: self.models[0].claims)
    @rule(job=jobs, ago=recent, counts=st.booleans(), delay=st.sampled_from([0.0, 0.0, LATER]))
    def retry_later(self, job: int, ago: int, counts: bool, delay: float) -> None:
        claim = self.claim_of(job, ago)
        if claim is None or (counts and claim.failures >= claim.max_retries):
            return  # the tries are used up: a worker lets the job fail instead

        def then(model: Model) -> None:
            model.leave(JobState.QUEUED)
            model.failures += counts
            model.waits = delay > 0

        self.store(
            job,
            ago,
            lambda unit, claim: unit.retry_later(claim, delay, "BUSY", "busy", counts=counts),
            then,
        )

    @precondition(lambda self: self.models[0].claims)
    @rule(job=jobs, ago=recent, current=st.integers(0, 5))
    def advance(self, job: int, ago: int, current: int) -> None:
        if current:
            self.store(job, ago, lambda unit, claim: unit.set_progress(claim, current, 5))
        else:
            self.store(job, ago, lambda unit, claim: unit.check_claim(claim))

    @precondition(lambda self: self.models[0].claims)
    @rule(job=jobs, ago=recent)
    def release(self, job: int, ago: int) -> None:
        model, claim = self.models[job], self.claim_of(job, ago)
        if claim is None:
            return
        held = model.holds(claim)
        with self.ledger.transaction() as unit:
            assert unit.steps.release(model.id, claim.attempt) == held
        if held:
            model.leave(JobState.QUEUED)

    @rule(worker=workers)
    def beat(self, worker: int) -> None:
        with self.ledger.transaction() as unit:
            unit.heartbeats.beat(self.workers[worker], "host", worker)
        self.silent.discard(self.workers[worker])

    @precondition(lambda self: self.models[0].state is JobState.RUNNING)
    @rule(leaves=st.booleans(), is_seen=st.booleans())
    def lose_a_worker(self, leaves: bool, is_seen: bool) -> None:
        worker_id = self.models[0].worker
        assert worker_id is not None
        if leaves:
            with self.ledger.transaction() as unit:
                unit.workers.leave(worker_id)
        else:
            silence = "UPDATE workers SET heartbeat_at = now() - interval '1 h' WHERE id = :id"
            self.sql(silence, id=worker_id)
        self.silent.add(worker_id)
        if is_seen:
            self.free_lost()

    # What a person does

    @precondition(lambda self: self.models[0].attempt > 0)
    @rule(job=jobs)
    def cancel(self, job: int) -> None:
        model = self.models[job]
        is_open = not model.state.is_final
        with self.ledger.transaction() as unit:
            assert unit.jobs.cancel(model.id) == is_open
        if is_open:
            model.leave(JobState.CANCELLED)

    @rule(job=jobs)
    def reopen(self, job: int) -> None:
        model = self.models[job]
        can_be = model.state.is_final and model.state is not JobState.SUCCEEDED
        with self.ledger.transaction() as unit:
            assert unit.jobs.reopen(model.id, LATER) == can_be
        if can_be:
            model.leave(JobState.QUEUED)
            model.failures, model.waits, model.overdue = 0, False, False

    @precondition(lambda self: self.models[0].state is JobState.SUCCEEDED)
    @rule(max_retries=st.integers(0, 2))
    def enqueue_another(self, max_retries: int) -> None:
        self.models.insert(0, self.new_job(max_retries))

    # What time and the reconciler do

    @precondition(lambda self: any(model.waits for model in self.models))
    @rule()
    def become_due(self) -> None:
        self.sql("UPDATE jobs SET not_before = now() WHERE state = 'queued'")
        for model in self.models:
            if not model.state.is_final:
                model.waits = False

    @precondition(lambda self: not self.models[0].state.is_final and self.models[0].attempt > 1)
    @rule(surely=st.sampled_from([True, False, False]))
    def become_overdue(self, surely: bool) -> None:
        if not surely:
            return  # most jobs never are
        self.sql("UPDATE jobs SET expires_at = now() WHERE id = :id", id=self.models[0].id)
        self.models[0].overdue = True

    @rule(job=jobs, is_used_up=st.booleans())
    def note_a_message(self, job: int, is_used_up: bool) -> None:
        """An enqueuer notes that it sent a message, which a worker may have used up by then."""
        model = self.models[job]
        with self.ledger.transaction() as unit:
            unit.outbox.mark_published([(model.id, model.attempt - is_used_up)], "epoch")
        if model.state is JobState.QUEUED and not is_used_up:
            model.is_published = True

    @precondition(lambda self: any(model.overdue for model in self.models))
    @rule()
    def expire_overdue(self) -> None:
        expected = [m for m in self.models if m.overdue and not m.state.is_final]
        with self.ledger.transaction() as unit:
            ended = unit.maintenance.expire_overdue()
        assert sorted(job.id for job in ended) == sorted(model.id for model in expected)
        for model in expected:
            model.leave(JobState.EXPIRED)

    @precondition(lambda self: self.silent)
    @rule()
    def free_lost(self) -> None:
        expected = [m for m in self.models if m.worker in self.silent]
        with self.ledger.transaction() as unit:
            freed = unit.maintenance.free_lost(SILENCE)
        assert sorted(job.id for job in freed) == sorted(model.id for model in expected)
        for model in expected:
            last = model.failures >= model.max_retries
            model.leave(JobState.FAILED if last else JobState.QUEUED)
            model.failures += 1

    # What always holds

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        rows = {row.id: row for row in self.watcher.execute(text("SELECT * FROM jobs"))}
        assert len(rows) == len(self.models)
        for model in self.models:
            row = rows[model.id]
            assert (row.state, row.attempt, row.failures, row.result) == (
                model.state,
                model.attempt,
                model.failures,
                model.result,
            )
            assert row.failures <= row.max_retries + 1
            assert (row.finished_at is not None) == model.state.is_final
            assert (row.result is not None) == (model.state is JobState.SUCCEEDED)
            if model.state is JobState.RUNNING:
                assert row.worker_id == model.worker
                assert row.not_before is None
            if model.state is JobState.QUEUED:
                assert row.worker_id is None
                assert (row.rung_at is not None) == model.is_published

    def new_job(self, max_retries: int) -> Model:
        with self.ledger.transaction() as unit:
            job = unit.jobs.create(
                kind="generation",
                provider="demo",
                model="demo-1",
                request={"prompt": "x"},
                request_hash="",
                max_retries=max_retries,
                expires_at=datetime.now(UTC) + timedelta(days=1),
            )
            return Model(job.id, max_retries)

    def claim_of(self, job: int, ago: int) -> Claim | None:
        claims = self.models[job].claims
        return claims[-1 - ago] if ago < len(claims) else None

    def store(
        self,
        job: int,
        ago: int,
        change: Callable[[StepRepository, Claim], object],
        then: Callable[[Model], None] = lambda model: None,
        *,
        may: Callable[[Model, Claim], bool] = Model.holds,
    ) -> None:
        """Let a worker store something under a claim, which may be an old one."""
        model, claim = self.models[job], self.claim_of(job, ago)
        if claim is None:
            return
        held = may(model, claim)
        try:
            with self.ledger.transaction() as unit:
                change(unit.steps, claim)
        except ClaimLost:
            assert not held
        else:
            assert held
            then(model)

    def sql(self, statement: str, **values: object) -> None:
        self.watcher.execute(text(statement), values)


def test_any_interleaving_keeps_the_states_in_order(stack: WorkerServices) -> None:
    alone = stack.ledger.engine.execution_options(isolation_level="AUTOCOMMIT")
    with alone.connect() as watcher:

        class Here(JobStates):
            def __init__(self) -> None:
                super().__init__(stack.ledger, watcher)

        run_state_machine_as_test(
            Here,
            settings=effort(
                max_examples=90,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_a_job_that_ends_while_it_waits_waits_for_nothing_any_more(stack: WorkerServices) -> None:
    endings: dict[str, Callable[[UnitOfWork, UUID], object]] = {
        "cancelled": lambda unit, job_id: unit.jobs.cancel(job_id),
        "expired": lambda unit, job_id: unit.maintenance.expire_overdue(),
    }
    for ending, end in endings.items():
        job = stack.jobs.enqueue_generation("x")
        with stack.ledger.transaction() as unit:
            claim = unit.steps.claim(job.id, stack.worker_id)
            assert claim is not None
            unit.steps.retry_later(claim, LATER, "BUSY", "busy", counts=True)
        with stack.ledger.transaction() as unit:
            query = text("UPDATE jobs SET expires_at = now() WHERE id = :id")
            unit.session.execute(query, {"id": job.id})
        with stack.ledger.transaction() as unit:
            end(unit, job.id)
        ended = stack.jobs.get(job.id)
        assert (str(ended.state), ended.not_before) == (ending, None)
