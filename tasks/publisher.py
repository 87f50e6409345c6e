"""Publishes jobs' messages by Celery."""

import math
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from amqp.exceptions import AMQPError
from celery import Celery
from kombu.exceptions import (  # type: ignore[attr-defined] # types of kombu 5.6
    BatchPublishError,
    OperationalError,
)
from redis import Redis
from redis.exceptions import RedisError

from promptstack.config.names import EPOCH_KEY, Queue, TaskName
from promptstack.repositories.models import JobKind
from promptstack.services.circuit_breaker import CircuitBreaker
from promptstack.services.jobs.publishing import BrokerUnavailable, JobMessage

TASKS = {
    JobKind.GENERATION: TaskName.GENERATE_TEXT,
    JobKind.EMBEDDING: TaskName.GENERATE_EMBEDDINGS,
    JobKind.SHARD: TaskName.RUN_SHARD,
    JobKind.FINALIZATION: TaskName.FINALIZE_RUN,
}

BROKER_ERRORS = (OperationalError, BatchPublishError, AMQPError, RedisError, OSError)
"""RabbitMQ's errors come as they are, since Celery doesn't retry here."""


class CeleryPublisher:
    """Sends one Celery message a job, with the job's id as task id."""

    def __init__(self, app: Celery, redis: Redis, *, circuit: CircuitBreaker | None = None) -> None:
        self._app = app
        self._redis = redis
        self._circuit = circuit or CircuitBreaker()
        self._epoch, self._epoch_at = "", -math.inf

    def epoch(self, max_age: float = 0.0) -> str:
        """Name the broker's data, by a key that dies with it."""
        self._check_circuit()
        if time.monotonic() - self._epoch_at < max_age:
            return self._epoch
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.set(EPOCH_KEY, str(uuid4()), nx=True)
                pipeline.get(EPOCH_KEY)
                read_at = time.monotonic()
                _, epoch = pipeline.execute()
        except RedisError as error:
            raise self._unavailable(error) from error
        self._epoch, self._epoch_at = str(epoch), read_at
        return self._epoch

    def uptime(self) -> float | None:
        """Return the age of Redis in whole seconds. It tells nothing of another broker."""
        try:
            return float(self._redis.info("server")["uptime_in_seconds"])
        except (RedisError, KeyError, ValueError):
            return None  # some hosted ones don't tell

    def publish(self, message: JobMessage) -> None:
        """Send a job's message. Monitors see its id, provider and model."""
        self._check_circuit()
        try:
            self._app.send_task(
                str(TASKS[message.kind]),
                args=_arguments(message),
                task_id=str(message.job_id),
                queue=str(message.queue),
                argsrepr=_shown(message),
                kwargsrepr="",
            )
        except BROKER_ERRORS as error:
            raise self._unavailable(error) from error

    def publish_all(self, messages: Sequence[JobMessage]) -> None:
        """Send the messages of many jobs in as few exchanges as the broker can.

        Monitors hear of these jobs when a worker takes them: an event for each message would cost
        an exchange of its own, which is what takes long.
        """
        self._check_circuit()
        amqp: Any = self._app.amqp
        try:
            with self._app.producer_or_acquire() as producer, producer.batch():
                for message in messages:
                    body = amqp.create_task_message(
                        str(message.job_id),
                        str(TASKS[message.kind]),
                        _arguments(message),
                        argsrepr=_shown(message),
                        kwargsrepr="",
                        ignore_result=None,  # as `send_task` says it
                    )
                    amqp.send_task_message(
                        producer, str(TASKS[message.kind]), body, queue=str(message.queue)
                    )
        except BROKER_ERRORS as error:
            raise self._unavailable(error) from error

    def waiting(self, queue: Queue) -> int:
        """Count the messages that wait in a queue."""
        try:
            with self._app.connection_or_acquire() as connection:
                # Declared: a queue that nobody has used yet is empty and no error.
                channel: Any = connection.default_channel
                return int(
                    channel.queue_declare(str(queue), durable=True, auto_delete=False).message_count
                )
        except BROKER_ERRORS as error:
            raise self._unavailable(error) from error

    def close(self) -> None:
        """Close the connections to the broker."""
        self._app.close()

    def _check_circuit(self) -> None:
        if self._circuit.is_open():
            raise BrokerUnavailable("The broker did not answer a moment ago.")

    def _unavailable(self, error: Exception) -> BrokerUnavailable:
        self._circuit.trip()
        return BrokerUnavailable(
            f"The broker does not answer ({type(error).__name__}); check REDIS_URL or "
            "CELERY_BROKER_URL. Jobs are accepted meanwhile and run when it is back."
        )


def _arguments(message: JobMessage) -> list[str | None]:
    return [str(message.job_id), message.sent_at.isoformat() if message.sent_at else None]


def _shown(message: JobMessage) -> str:
    """What monitors show of a message: ids and names, never any content."""
    return f"job {message.job_id} with {message.provider}/{message.model}"
