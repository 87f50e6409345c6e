"""PostgreSQL that breaks connections, refuses writes or goes away for a while."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import create_engine, make_url, text

from promptstack.config.names import Queue
from promptstack.embedded.servers import ServerUrls
from promptstack.repositories.content.embeddings import EmbeddingRepository
from promptstack.repositories.errors import LedgerConflict, LedgerSlow
from promptstack.repositories.jobs.attempts import AttemptRepository
from promptstack.repositories.jobs.outbox import OutboxRepository
from promptstack.repositories.jobs.records import Claim, JobSnapshot, SucceedStep
from promptstack.repositories.jobs.steps import StepRepository
from promptstack.repositories.models import JobState
from promptstack.services.execution.retrying_ledger import RetryingLedger
from promptstack.services.jobs.progress import Progress
from promptstack.services.jobs.views import JobView
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute
from tests.processes import Process, join, wait_until

CUT = "SELECT pg_terminate_backend(pg_backend_pid())"
# A deadlock, a full disk, a standby that takes no writes, a cancelled statement.
TROUBLES = {
    "connection": CUT,
    **{
        code: f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{code}'; END $$"
        for code in ("40P01", "53100", "25006", "57014")
    },
}


def nobody(_: Progress) -> None:
    """Watch nothing."""


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("raw", [True, False])
def test_vectors_that_are_paid_for_are_stored_after_a_trouble(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch, trouble: str, raw: bool
) -> None:
    real = EmbeddingRepository.store
    met: list[str] = []

    def store(self: EmbeddingRepository, *values: object) -> None:
        if not met:
            met.append(trouble)
            if raw:
                # As COPY does, past SQLAlchemy.
                self._session.connection().connection.cursor().execute(TROUBLES[trouble])
            self._session.execute(text(TROUBLES[trouble]))
        real(self, *values)  # type: ignore[arg-type]

    monkeypatch.setattr(EmbeddingRepository, "store", store)
    stack.heartbeat.beat()
    job = stack.jobs.enqueue_embedding("Some words.", source="a", max_retries=0)
    assert execute(stack, job.id).state is JobState.SUCCEEDED
    assert met == [trouble]
    assert paid(stack, job) == ["succeeded"]


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize(
    ("repository", "step"),
    [
        (StepRepository, "claim_batch"),
        (AttemptRepository, "begin"),
        (StepRepository, "succeed_batch"),
    ],
)
def test_a_generation_is_asked_for_once_whatever_step_meets_a_trouble(
    stack: WorkerServices,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
    repository: type[StepRepository | AttemptRepository],
    step: str,
) -> None:
    real = getattr(repository, step)
    met: list[str] = []

    def change(self: Any, *values: object, **others: object) -> object:
        # Once in the batch, and once in the transaction of its own that follows.
        if len(met) < 2:
            met.append(trouble)
            self._session.execute(text(TROUBLES[trouble]))
        return real(self, *values, **others)

    monkeypatch.setattr(repository, step, change)
    stack.heartbeat.beat()
    job = stack.jobs.enqueue_generation("Hello.", max_retries=0)
    assert execute(stack, job.id).state is JobState.SUCCEEDED
    assert met == [trouble] * 2
    assert paid(stack, job) == ["succeeded"]


def test_an_embedding_goes_on_where_a_trouble_met_its_progress(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StepRepository.set_progress
    met: list[str] = []

    def change(self: StepRepository, *values: object) -> None:
        if not met:
            met.append("connection")
            self._session.execute(text(CUT))
        real(self, *values)  # type: ignore[arg-type]

    monkeypatch.setattr(StepRepository, "set_progress", change)
    stack.heartbeat.beat()
    job = stack.jobs.enqueue_embedding("Some words.", source="a", max_retries=0)
    assert execute(stack, job.id).state is JobState.SUCCEEDED
    assert met
    assert paid(stack, job) == ["succeeded"]


def test_messages_wait_in_their_queue_while_the_database_is_away(
    stack: WorkerServices, servers: ServerUrls, start_worker: Callable[..., Process]
) -> None:
    worker = start_worker(WORKER_CONCURRENCY="2")
    jobs = [
        stack.jobs.enqueue_generation(f"{number}", options={"delay_seconds": 0.2})
        for number in range(30)
    ]
    wait_until(lambda: stack.jobs.get(jobs[0].id).state.is_final, "the first to end")
    with database_away(stack, servers):
        wait_until(lambda: worker.output().count("waits for the ledger") >= 2, "both to wait")

        def waiting_later() -> int:
            heard = worker.output().count("heartbeat: ")
            wait_until(lambda: worker.output().count("heartbeat: ") >= heard + 3, "time to pass")
            return stack.publisher.waiting(Queue.GENERATION)

        # Each of the two slots may have a job that waits for its claim, beside the one whose answer
        # is to be stored. No more are taken.
        waiting = waiting_later()
        assert waiting > 15
        assert waiting_later() == waiting
    wait_until(
        lambda: all(stack.jobs.get(job.id).state is JobState.SUCCEEDED for job in jobs), "the rest"
    )
    assert {stack.jobs.get(job.id).attempt for job in jobs} <= {1, 2}
    assert all(paid(stack, job).count("succeeded") == 1 for job in jobs)


def test_a_worker_stops_in_time_while_the_database_is_away(
    stack: WorkerServices, servers: ServerUrls, start_worker: Callable[..., Process]
) -> None:
    worker = start_worker(SHUTDOWN_GRACE_SECONDS="0.5")
    job = stack.jobs.enqueue_generation("x", options={"delay_seconds": 1})
    wait_until(lambda: stack.jobs.get(job.id).state is JobState.RUNNING, "the job to run")
    with database_away(stack, servers):
        wait_until(lambda: "waits for the ledger" in worker.output(), "the answer to wait")
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
        assert "Traceback" not in worker.output()


def test_accepted_is_accepted_also_when_the_note_of_the_message_meets_a_conflict(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller would else send the job again, and pay twice."""

    def conflict(*_: object) -> None:
        raise LedgerConflict("met")

    monkeypatch.setattr(OutboxRepository, "mark_published", conflict)
    job = stack.jobs.enqueue_generation("x")
    assert stack.jobs.get(job.id).state is JobState.QUEUED
    assert stack.publisher.waiting(Queue.GENERATION) == 1


def test_a_text_may_change_while_it_is_cut(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cutting may take seconds: nothing is locked meanwhile, and the new text is what counts."""
    stack.heartbeat.beat()
    chunker = stack.chunker
    real, replaced = chunker.cut, threading.Event()

    def cut(whole: str, source: str) -> object:
        if not replaced.is_set():
            replaced.set()
            stack.jobs.enqueue_embedding("The new text.", source="a")
        return real(whole, source)

    monkeypatch.setattr(chunker, "cut", cut)
    job = stack.jobs.enqueue_embedding("The old text.", source="a")
    assert execute(stack, job.id).state is JobState.SUCCEEDED
    with stack.ledger.transaction() as unit:
        chunks = unit.session.scalars(text("SELECT text FROM chunks")).all()
    assert chunks == ["The new text."]


def paid(stack: WorkerServices, job: JobView) -> list[str]:
    return [str(attempt.state) for attempt in stack.jobs.get_attempts(job.id)]


@contextmanager
def database_away(stack: WorkerServices, servers: ServerUrls) -> Iterator[None]:
    """Cut all connections to the test's database and let no new ones in."""
    name = make_url(stack.database_url).database
    admin = create_engine(servers.database_url, isolation_level="AUTOCOMMIT")
    try:
        with admin.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
            kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
            connection.execute(text(kill), {"name": name})
        yield
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
        admin.dispose()


def test_a_write_that_is_always_refused_ends_its_job_and_frees_the_worker(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that is longer than the database's statement_timeout."""
    stack.retrying_ledger = RetryingLedger(
        stack.ledger, stack.active_jobs, retry_seconds=0.01, max_refusals=2
    )

    def refuse(self: StepRepository, *_: object) -> None:
        self._session.execute(text(TROUBLES["57014"]))

    monkeypatch.setattr(StepRepository, "succeed_batch", refuse)
    stack.heartbeat.beat()
    job = stack.jobs.enqueue_generation("x", max_retries=0)
    assert execute(stack, job.id).state is JobState.FAILED
    assert stack.jobs.get(job.id).error_code == "LEDGER_REFUSED"
    assert paid(stack, job) == ["failed"]


def test_an_attempt_whose_answer_cannot_be_kept_is_settled(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(StepRepository, "succeed_batch", fail)
    stack.heartbeat.beat()
    job = stack.jobs.enqueue_generation("x", max_retries=0)
    assert execute(stack, job.id).state is JobState.FAILED
    assert paid(stack, job) == ["failed"]
    # What it cost is on record even so.
    [attempt] = stack.jobs.get_attempts(job.id)
    assert (attempt.input_tokens, attempt.cost_usd) == (1, Decimal(0))
    assert attempt.output_tokens
    assert attempt.latency_seconds is not None


def test_nobody_dies_of_a_lock_on_the_jobs(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration has it for as long as it takes, or `pg_dump` and who waits behind it."""
    monkeypatch.setattr("promptstack.services.execution.heartbeat.STATEMENT_SECONDS", 0.2)
    stack.heartbeat.beat()
    job = stack.jobs.enqueue_generation("x")
    with stack.ledger.transaction() as unit:
        assert unit.steps.claim(job.id, stack.worker_id) is not None
        unit.session.execute(text("UPDATE workers SET heartbeat_at = now() - interval '16 s'"))
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(LedgerSlow):
            stack.heartbeat.beat()
    with stack.ledger.transaction() as unit:
        assert unit.maintenance.free_lost(15.0) == []


def test_an_answer_and_the_reconciler_do_not_wait_for_each_other(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, warned = StepRepository.succeed_batch, []
    freed: list[object] = []

    def succeed(self: StepRepository, steps: Sequence[SucceedStep]) -> dict[UUID, JobSnapshot]:
        snapshots = real(self, steps)
        with stack.ledger.transaction() as unit:
            unit.limit_statements(2.0)
            unit.session.execute(text("UPDATE workers SET heartbeat_at = '2026-01-01'"))
            # The answer is stored but not committed: the job is left alone.
            freed.append(unit.maintenance.free_lost(15.0))
        return snapshots

    monkeypatch.setattr(StepRepository, "succeed_batch", succeed)
    monkeypatch.setattr(
        "promptstack.services.execution.retrying_ledger.logger.warning",
        lambda *said: warned.append(said),
    )
    stack.heartbeat.beat()
    job = stack.jobs.enqueue_generation("x")
    assert execute(stack, job.id).state is JobState.SUCCEEDED
    assert (freed, warned) == ([[]], [])


def test_vectors_and_the_reconciler_do_not_wait_for_each_other(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both change a job and its reservations."""
    real, warned = StepRepository.set_progress, []
    free: list[threading.Thread] = []

    def sweep() -> None:
        with stack.ledger.transaction() as unit:
            unit.maintenance.free_lost(15.0)
            unit.reservations.forget_idle()

    def set_progress(self: StepRepository, claim: Claim, current: int, total: int) -> None:
        if current and not free:
            # Another connection would be refused this row, if a sweep had the job's already.
            free.append(threading.Thread(target=sweep))
            with stack.ledger.transaction() as unit:
                unit.session.execute(text("UPDATE workers SET heartbeat_at = '2026-01-01'"))
            free[0].start()
            wait_until(lambda: waits_for_a_lock(stack) or not free[0].is_alive(), "the sweep")
        real(self, claim, current, total)

    monkeypatch.setattr(StepRepository, "set_progress", set_progress)
    monkeypatch.setattr(
        "promptstack.services.execution.retrying_ledger.logger.warning",
        lambda *said: warned.append(said),
    )
    stack.heartbeat.beat()
    job = stack.jobs.enqueue_embedding("Some words.", source="a")
    assert execute(stack, job.id).state is JobState.SUCCEEDED
    join(free[0])
    assert warned == []
    assert paid(stack, job) == ["succeeded"]


def waits_for_a_lock(stack: WorkerServices) -> bool:
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with stack.ledger.transaction() as unit:
        return bool(unit.session.scalar(text(query)))
