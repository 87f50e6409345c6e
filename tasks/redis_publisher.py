"""Publishes jobs' messages to Redis, all of a call in one exchange."""

import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError

from promptstack.config.names import EPOCH_KEY, Queue
from promptstack.services.circuit_breaker import CircuitBreaker
from promptstack.services.jobs.publishing import JobMessage
from promptstack.tasks.messages import (
    EVENTS_EXCHANGE,
    GATHERED,
    gathered_events,
    sent_event,
    task_message,
)
from promptstack.tasks.publisher import BrokerPublisher

UNHEARD_SECONDS = 1.0
"""How long no events are made after one that nobody heard."""
SEPARATOR = "\x06\x16"
"""Between the parts of a binding, as kombu writes it."""


class RedisPublisher(BrokerPublisher):
    """Puts messages where kombu's Redis transport does, and where its consumers look."""

    errors = (RedisError, OSError)

    def __init__(self, redis: Redis, *, circuit: CircuitBreaker | None = None) -> None:
        super().__init__(redis, circuit=circuit)
        number = redis.connection_pool.connection_kwargs.get("db") or 0
        self._events = f"/{number}.{EVENTS_EXCHANGE}"
        self._bound: set[Queue] = set()
        """The queues whose bindings are known to be there, in the epoch of the last exchange."""
        self._unheard_until = 0.0

    def waiting(self, queue: Queue) -> int:
        """Count the messages that wait in a queue."""
        try:
            return int(self._redis.llen(queue))
        except self.errors as error:
            raise self._unavailable(error) from error

    def tell(self, events: Sequence[dict[str, Any]], worker: str) -> int:
        """Send a worker's events. Returns how many monitors heard them."""
        self._check_circuit()
        try:
            message = gathered_events(events, worker)
            return int(self._redis.publish(f"{self._events}/{GATHERED}", message))
        except self.errors as error:
            raise self._unavailable(error) from error

    def close(self) -> None:
        """Nothing is its own: the client belongs to who made it."""

    def _send(self, messages: Sequence[JobMessage]) -> str:
        is_told = bool(messages) and time.monotonic() >= self._unheard_until
        epoch, heard = self._exchange(messages, sent_event(messages) if is_told else None)
        if heard == 0:
            self._unheard_until = time.monotonic() + UNHEARD_SECONDS
        return epoch

    def _send_again(self, messages: Sequence[JobMessage]) -> None:
        if messages:
            self._exchange(messages, None)

    def _exchange(
        self, messages: Sequence[JobMessage], event: tuple[str, bytes] | None
    ) -> tuple[str, int | None]:
        """Send messages and an event; the epoch before them, and how many heard the event."""
        with self._redis.pipeline(transaction=False) as pipeline:
            # First: a flush after this one and before the messages must not seem to be before it.
            pipeline.set(EPOCH_KEY, str(uuid4()), nx=True)
            pipeline.get(EPOCH_KEY)
            unbound = {message.queue for message in messages} - self._bound
            for queue in unbound:
                _bind(pipeline, queue)
            for queue, waiting in _by_queue(messages).items():
                pipeline.lpush(queue, *waiting)
            if event is not None:
                pipeline.publish(f"{self._events}/{event[0]}", event[1])
            _, epoch, *others = pipeline.execute()
        if epoch != self._epoch:
            self._bound.clear()
        self._bound |= unbound
        self._epoch, self._epoch_at = str(epoch), time.monotonic()
        return self._epoch, None if event is None else others[-1]


def _by_queue(messages: Sequence[JobMessage]) -> dict[Queue, list[bytes]]:
    sorted_: dict[Queue, list[bytes]] = {}
    for message in messages:
        sorted_.setdefault(message.queue, []).append(task_message(message))
    return sorted_


def _bind(pipeline: Pipeline, queue: Queue) -> None:
    """Let kombu find the queue by its exchange, as declaring it does."""
    binding = SEPARATOR.join([queue, "", queue])
    pipeline.sadd(f"_kombu.binding.{queue}", binding)
    pipeline.sadd(f"_kombu.binding_permanent.{queue}", binding)
