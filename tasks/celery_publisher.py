"""Publishes jobs' messages by Celery, to any broker that it knows."""

from collections.abc import Sequence
from typing import Any

from amqp.exceptions import AMQPError
from celery import Celery
from kombu.exceptions import (  # type: ignore[attr-defined] # types of kombu 5.6
    BatchPublishError,
    OperationalError,
)
from redis import Redis
from redis.exceptions import RedisError

from promptstack.config.names import Queue
from promptstack.services.circuit_breaker import CircuitBreaker
from promptstack.services.jobs.publishing import JobMessage
from promptstack.tasks.messages import TASKS, arguments, shown
from promptstack.tasks.publisher import BrokerPublisher

EPOCH_SECONDS = 1.0
"""How old the epoch of what is sent may be. Where it has changed since, a job is sent twice."""


class CeleryPublisher(BrokerPublisher):
    """Sends messages by Celery. The epoch is a key in Redis also where another broker is used."""

    errors = (OperationalError, BatchPublishError, AMQPError, RedisError, OSError)
    """RabbitMQ's errors come as they are, since Celery doesn't retry here."""

    def __init__(self, app: Celery, redis: Redis, *, circuit: CircuitBreaker | None = None) -> None:
        super().__init__(redis, circuit=circuit)
        self._app = app

    def waiting(self, queue: Queue) -> int:
        """Count the messages that wait in a queue."""
        try:
            with self._app.connection_or_acquire() as connection:
                # Declared: a queue that nobody has used yet is empty and no error.
                channel: Any = connection.default_channel
                return int(
                    channel.queue_declare(str(queue), durable=True, auto_delete=False).message_count
                )
        except self.errors as error:
            raise self._unavailable(error) from error

    def close(self) -> None:
        """Close the connections to the broker."""
        self._app.close()

    def _send(self, messages: Sequence[JobMessage]) -> str:
        epoch = self.epoch(EPOCH_SECONDS)
        for message in messages:
            self._app.send_task(
                str(TASKS[message.kind]),
                args=arguments(message),
                task_id=str(message.job_id),
                queue=str(message.queue),
                argsrepr=shown(message),
                kwargsrepr="",
            )
        return epoch

    def _send_again(self, messages: Sequence[JobMessage]) -> None:
        amqp: Any = self._app.amqp
        with self._app.producer_or_acquire() as producer, producer.batch():
            for message in messages:
                body = amqp.create_task_message(
                    str(message.job_id),
                    str(TASKS[message.kind]),
                    arguments(message),
                    argsrepr=shown(message),
                    kwargsrepr="",
                    ignore_result=None,  # as `send_task` says it
                )
                amqp.send_task_message(
                    producer, str(TASKS[message.kind]), body, queue=str(message.queue)
                )
