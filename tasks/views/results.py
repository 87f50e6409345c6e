"""Celery's result backend, which here is only a view for AsyncResult and Flower."""

import logging
import threading
from collections.abc import Callable
from itertools import islice
from typing import Any

import orjson
from celery import states
from celery.backends.redis import RedisBackend
from redis.exceptions import RedisError

from promptstack.services.circuit_breaker import CircuitBreaker

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Results kept while Redis is away. Of more, the oldest are dropped."""
BATCH = 500
"""Results stored in one exchange with Redis."""


class ResultView(RedisBackend):
    """Stores results in Redis. What it can't take now is stored when it is there again.

    The ledger has the real results. An error of the backend must not reach Celery, which would
    keep the task's slot for ever, until none is left (seen with Celery 5.7).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._circuit = CircuitBreaker()
        self._waiting: dict[str, str] = {}
        self._waiting_lock = threading.Lock()
        self._storing_lock = threading.Lock()
        self._wake: Callable[[], object] | None = None

    def write_behind(self, wake: Callable[[], object]) -> None:
        """Let `catch_up` store results, many at a time. For workers: `wake` has them call it."""
        self._wake = wake

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **_: Any,
    ) -> Any:
        """Store a result now or soon, or keep it for when Redis is there again."""
        result = self.encode_result(result, state)
        celery: Any = super()  # more than its types tell
        meta = celery._get_result_meta(
            result=result, state=state, traceback=traceback, request=request
        )
        meta = {**meta, "task_id": task_id}
        try:
            encoded: str = orjson.dumps(meta).decode()
        except TypeError:  # a result of somebody else's task
            encoded = celery.encode(meta)
        task_id = str(task_id)  # somebody else's message may have a number
        with self._waiting_lock:
            # The newest state of a task comes last, and alone.
            self._waiting.pop(task_id, None)
            self._waiting[task_id] = encoded
            if len(self._waiting) > MAX_WAITING:
                del self._waiting[next(iter(self._waiting))]
        if self._wake is None:
            self.catch_up()
        else:
            self._wake()
        return result

    def catch_up(self) -> None:
        """Store what waits. A worker calls it again and again."""
        with self._storing_lock:
            while self._waiting and not self._circuit.is_open():
                with self._waiting_lock:
                    stored = dict(islice(self._waiting.items(), BATCH))
                try:
                    self._store(stored)
                except (RedisError, OSError) as error:
                    self._circuit.trip()
                    logger.warning(
                        "%d jobs are shown to Celery later (%s)",
                        len(stored),
                        type(error).__name__,
                    )
                    return
                with self._waiting_lock:
                    for task_id, encoded in stored.items():
                        if self._waiting.get(task_id) is encoded:
                            del self._waiting[task_id]

    def _store(self, results: dict[str, str]) -> None:
        """Do what Celery does for each result: keep a success, and tell whoever waits for it."""
        named = {self.get_key_for_task(task_id): result for task_id, result in results.items()}
        expires: Any = getattr(self, "expires", None)
        known = self.client.mget(list(named))
        with self.client.pipeline(transaction=False) as pipeline:
            for (key, result), before in zip(named.items(), known, strict=True):
                if before and self.decode(before)["status"] == states.SUCCESS:
                    continue
                pipeline.set(key, result, ex=expires or None)
                pipeline.publish(key, result)
            pipeline.execute()
