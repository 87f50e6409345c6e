"""Only a message that was taken tells of others that were sent before it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from amqp.exceptions import RecoverableConnectionError
from sqlalchemy import text

from promptstack.config.names import Queue
from promptstack.repositories.models import JobState
from promptstack.services.jobs.progress import Progress
from promptstack.tasks.app import create_app
from promptstack.tasks.celery_publisher import CeleryPublisher
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute

BACKLOG = 30


def nobody(_: Progress) -> None:
    """Watch nothing."""


def sql(stack: WorkerServices, statement: str) -> None:
    with stack.ledger.transaction() as unit:
        unit.session.execute(text(statement))


@pytest.fixture
def busy(stack: WorkerServices) -> WorkerServices:
    """Jobs that have waited for an hour, each with its message in the queue."""
    for number in range(BACKLOG):
        stack.jobs.enqueue_generation(f"{number}")
    sql(stack, "UPDATE jobs SET rung_at = now() - interval '1 h', created_at = rung_at")
    stack.heartbeat.beat()
    assert stack.reconciler.run_once()["messages"] == 0
    assert stack.publisher.waiting(Queue.GENERATION) == BACKLOG
    return stack


def cancel(stack: WorkerServices) -> None:
    stack.jobs.cancel(stack.jobs.enqueue_generation("x").id)


def expire(stack: WorkerServices) -> None:
    stack.jobs.enqueue_generation("x")
    sql(stack, "UPDATE jobs SET expires_at = now() WHERE rung_at > now() - interval '1 min'")


def answer_late(stack: WorkerServices) -> None:
    """A job is freed and published again, and then its first worker answers."""
    job = stack.jobs.enqueue_generation("x")
    with stack.ledger.transaction() as unit:
        claim = unit.steps.claim(job.id, stack.worker_id)
        assert claim is not None
        unit.steps.release(job.id, claim.attempt)
    assert stack.reconciler.run_once()["messages"] == 1
    with stack.ledger.transaction() as unit:
        unit.steps.succeed(claim, {"text": "late"})


def be_told_of_a_future_message(stack: WorkerServices) -> None:
    """Another service may send messages, with a clock of its own."""
    job = stack.jobs.enqueue_generation("x")
    execute(stack, job.id, published_at=datetime.now(UTC) + timedelta(days=365))
    sql(stack, "UPDATE jobs SET rung_at = now() WHERE state = 'queued'")


def be_told_nothing(stack: WorkerServices) -> None:
    job = stack.jobs.enqueue_generation("x")
    execute(stack, job.id)


@pytest.mark.parametrize(
    "happens", [cancel, expire, answer_late, be_told_of_a_future_message, be_told_nothing]
)
def test_a_healthy_backlog_is_not_published_again(
    busy: WorkerServices, happens: Callable[[WorkerServices], None]
) -> None:
    happens(busy)
    # The job that ended is told to AsyncResult; no other message is sent.
    before = busy.publisher.waiting(Queue.GENERATION)
    assert [busy.outbox.publish() for _ in range(3)] == [0, 0, 0]
    assert busy.publisher.waiting(Queue.GENERATION) <= before + 1


def test_a_rabbitmq_that_breaks_the_connection_refuses_no_job(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its errors are of a family of their own; the job is committed by then."""

    def send(*_: object, **__: object) -> None:
        raise RecoverableConnectionError("gone")

    app = create_app(stack.settings, stack.redis_url, results=False)
    monkeypatch.setattr(app, "send_task", send)
    monkeypatch.setattr(stack, "publisher", CeleryPublisher(app, stack.redis))
    job = stack.jobs.enqueue_generation("x")
    assert job.state is JobState.QUEUED
    assert not stack.publisher.waiting(Queue.GENERATION)


def test_only_messages_sent_just_before_a_broker_crash_are_sent_again(
    stack: WorkerServices,
) -> None:
    """It comes back with its data, but for the last second or two."""
    ages = {"long before": 20.0, "just before": 11.0, "after": 2.0}
    jobs = {when: stack.jobs.enqueue_generation(when).id for when in ages}
    epoch = stack.publisher.epoch()
    for when, age in ages.items():
        with stack.ledger.transaction() as unit:
            unit.session.execute(
                text("UPDATE jobs SET rung_at = now() - make_interval(secs => :s) WHERE id = :id"),
                {"s": age, "id": jobs[when]},
            )

    def take(uptime: float | None) -> list[UUID]:
        with stack.ledger.transaction() as unit:
            taken = unit.outbox.take_unpublished(
                epoch, idle_queues=[], patience=60.0, limit=10, uptime=uptime
            )
        return [job.id for job in taken]

    assert take(None) == take(600.0) == []
    assert take(10.0) == [jobs["just before"]]
    assert take(10.0) == []


def test_redis_tells_its_age(stack: WorkerServices) -> None:
    uptime = stack.publisher.uptime()
    assert uptime is not None
    assert uptime >= 0
