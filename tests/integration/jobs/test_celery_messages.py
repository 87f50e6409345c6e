"""Our messages are Celery's own: decoded, both say the same."""

import json
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery.result import AsyncResult
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from kombu import Connection
from kombu import Queue as KombuQueue
from kombu.message import Message
from redis.client import PubSub

from promptstack.config.celery import kombu_url
from promptstack.config.names import Queue
from promptstack.repositories.models import JobKind
from promptstack.services.jobs.publishing import JobMessage
from promptstack.tasks import redis_publisher
from promptstack.tasks.app import create_app
from promptstack.tasks.celery_publisher import CeleryPublisher
from promptstack.tasks.messages import sent_event
from promptstack.tasks.redis_publisher import RedisPublisher
from promptstack.tasks.worker_services import WorkerServices
from tests.processes import Process, wait_until

EVENTS = "/*.celeryev/*"
DIFFER = {
    "message": {"properties": ["delivery_tag", "reply_to"]},
    "event": {"properties": ["delivery_tag"], "body": ["clock", "timestamp"]},
}
"""Ids and times, made anew for each message."""
ONE = JobMessage(uuid4(), JobKind.GENERATION, Queue.GENERATION, "demo", "demo-1")

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
times = st.none() | st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)).map(  # noqa: DTZ001
    lambda time: time.replace(tzinfo=UTC)
)
messages = st.builds(
    JobMessage,
    st.uuids(),
    st.sampled_from(JobKind),
    st.sampled_from(Queue),
    names,
    names,
    st.just(0),
    times,
)


@pytest.fixture
def ours(stack: WorkerServices) -> RedisPublisher:
    publisher = stack.publisher
    assert isinstance(publisher, RedisPublisher)
    return publisher


@pytest.fixture
def celerys(stack: WorkerServices) -> Iterator[CeleryPublisher]:
    app = create_app(stack.settings, stack.redis_url, results=False)
    with closing(CeleryPublisher(app, stack.redis)) as publisher:
        yield publisher


@pytest.fixture
def events(stack: WorkerServices) -> Iterator[PubSub]:
    """Somebody who listens to all events, as Flower does."""
    with listener(stack) as listening:
        yield listening


@contextmanager
def listener(stack: WorkerServices) -> Iterator[PubSub]:
    with PubSub(stack.redis.connection_pool) as listening:
        listening.psubscribe(EVENTS)
        assert listening.get_message(timeout=10)["type"] == "psubscribe"
        yield listening


def decoded(raw: Any, what: str) -> dict[str, Any]:
    """A message with its body read, without what differs from one to the next."""
    message: dict[str, Any] = json.loads(raw)
    message["body"] = json.loads(b64decode(message["body"]))
    bodies = message["body"] if isinstance(message["body"], list) else [message["body"]]
    for part, keys in DIFFER[what].items():
        for key in keys:
            for found in bodies if part == "body" else [message[part]]:
                del found[key]
    return message


def heard(events: PubSub) -> tuple[str, dict[str, Any]]:
    event = events.get_message(timeout=10)
    assert event is not None
    return event["channel"], decoded(event["data"], "event")


@effort(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages)
def test_a_message_and_its_event_say_what_celerys_own_say(
    stack: WorkerServices,
    ours: RedisPublisher,
    celerys: CeleryPublisher,
    events: PubSub,
    message: JobMessage,
) -> None:
    told = []
    for publisher in (ours, celerys):
        publisher.publish([message])
        told.append(heard(events))
    assert told[0] == told[1]
    first, second = stack.redis.lrange(message.queue, 0, -1)
    stack.redis.delete(message.queue)
    assert decoded(first, "message") == decoded(second, "message")


@effort(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(messages, min_size=2, max_size=8))
def test_many_messages_lie_as_celery_puts_them_one_after_the_other(
    stack: WorkerServices,
    ours: RedisPublisher,
    celerys: CeleryPublisher,
    events: PubSub,
    messages: Sequence[JobMessage],
) -> None:
    found: list[dict[Queue, list[dict[str, Any]]]] = []
    told: list[list[dict[str, Any]]] = []
    for publisher in (ours, celerys):
        publisher.publish(messages)
        queues = {queue: stack.redis.lrange(queue, 0, -1) for queue in Queue}
        found.append({q: [decoded(raw, "message") for raw in all_] for q, all_ in queues.items()})
        stack.redis.delete(*Queue)
        told.append([])
        while len(told[-1]) < len(messages):
            body = heard(events)[1]["body"]
            told[-1] += body if isinstance(body, list) else [body]
    assert found[0] == found[1]
    assert told[0] == told[1]


def test_kombu_finds_the_queues_that_we_use(
    stack: WorkerServices, ours: RedisPublisher, celerys: CeleryPublisher
) -> None:
    """Flower, `inspect` and `send_task` of others go by the bindings."""

    def bindings() -> dict[Any, set[Any]]:
        return {key: stack.redis.smembers(key) for key in stack.redis.keys("_kombu.*")}

    ours.publish([ONE])
    by_us = bindings()
    stack.redis.flushdb()
    # Anew after a flush, as soon as we know of it.
    for _ in range(2):
        ours.publish([ONE])
    assert bindings() == by_us
    stack.redis.flushdb()
    celerys.publish([ONE])
    assert bindings() == by_us


def test_kombu_reads_our_message(stack: WorkerServices, ours: RedisPublisher) -> None:
    taken: list[tuple[Any, Message]] = []
    ours.publish([ONE])
    with Connection(kombu_url(stack.redis_url)) as connection:
        consumer = connection.Consumer(
            [KombuQueue("generation", no_ack=True)],
            callbacks=[lambda *both: taken.append(both)],
            accept=["json"],
        )
        with consumer:
            connection.drain_events(timeout=10)
        [(body, message)] = taken
    assert body[0] == [str(ONE.job_id), None]
    assert message.headers["id"] == message.properties["correlation_id"] == str(ONE.job_id)


def test_no_event_is_made_while_nobody_listens(
    stack: WorkerServices, ours: RedisPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Sequence[JobMessage]] = []

    def make(messages: Sequence[JobMessage]) -> tuple[str, bytes]:
        made.append(messages)
        return sent_event(messages)

    monkeypatch.setattr(redis_publisher, "sent_event", make)
    monkeypatch.setattr(redis_publisher, "UNHEARD_SECONDS", 3_600.0)
    for _ in range(3):
        ours.publish([ONE])
    assert len(made) == 1
    monkeypatch.setattr(ours, "_unheard_until", time.monotonic())  # an hour later
    with listener(stack) as listening:
        for _ in range(3):
            ours.publish([ONE])
        assert len(made) == 4
        assert [heard(listening)[1]["body"]["uuid"] for _ in range(3)] == [str(ONE.job_id)] * 3


def test_one_exchange_sends_many_messages(stack: WorkerServices, ours: RedisPublisher) -> None:
    many = [
        JobMessage(UUID(int=number), JobKind.EMBEDDING, Queue.EMBEDDINGS, "local", "m")
        for number in range(500)
    ]
    ours.publish([ONE])
    before = commands(stack)
    ours.publish(many)
    # The epoch, set and read; two of the binding; the messages. The last is the count's own.
    assert commands(stack) - before <= 6
    assert ours.waiting(Queue.EMBEDDINGS) == 500


def commands(stack: WorkerServices) -> int:
    return int(stack.redis.info("stats")["total_commands_processed"])


def test_a_worker_takes_our_messages(
    stack: WorkerServices, start_worker: Callable[..., Process]
) -> None:
    jobs = [stack.jobs.enqueue_generation("Say hello.", model="demo-1") for _ in range(2)]
    jobs.append(stack.jobs.enqueue_embedding("A text.", source="ünïcode 文書"))
    start_worker()
    for job in stack.jobs.wait([job.id for job in jobs], timeout=60):
        assert job.state == "succeeded"
        result: AsyncResult[Any] = AsyncResult(str(job.id), app=stack.celery)
        wait_until(result.ready, "its result")
