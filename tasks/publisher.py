"""What publishers of jobs' messages share: the broker's epoch, and rest after a failure."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError

from promptstack.config.names import EPOCH_KEY
from promptstack.services.circuit_breaker import CircuitBreaker
from promptstack.services.jobs.publishing import BrokerUnavailable, JobMessage


class BrokerPublisher(ABC):
    """Sends one message a job, with the job's id as task id, and lets a dead broker rest."""

    errors: ClassVar[tuple[type[Exception], ...]]
    """What is raised where the broker is away."""

    def __init__(self, redis: Redis, *, circuit: CircuitBreaker | None = None) -> None:
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

    def publish(self, messages: Sequence[JobMessage]) -> str:
        """Send jobs' messages, and tell monitors; the epoch in which they were sent."""
        self._check_circuit()
        try:
            return self._send(messages)
        except self.errors as error:
            raise self._unavailable(error) from error

    def publish_all(self, messages: Sequence[JobMessage]) -> None:
        """Send messages again. Monitors hear of these jobs when a worker takes them."""
        self._check_circuit()
        try:
            self._send_again(messages)
        except self.errors as error:
            raise self._unavailable(error) from error

    @abstractmethod
    def _send(self, messages: Sequence[JobMessage]) -> str: ...

    @abstractmethod
    def _send_again(self, messages: Sequence[JobMessage]) -> None: ...

    def _check_circuit(self) -> None:
        if self._circuit.is_open():
            raise BrokerUnavailable("The broker did not answer a moment ago.")

    def _unavailable(self, error: Exception) -> BrokerUnavailable:
        self._circuit.trip()
        return BrokerUnavailable(
            f"The broker does not answer ({type(error).__name__}); check REDIS_URL or "
            "CELERY_BROKER_URL. Jobs are accepted meanwhile and run when it is back."
        )
