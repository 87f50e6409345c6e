"""Celery's result backend, which here is only a view for AsyncResult and Flower."""

import logging
import threading
import time
from typing import Any

from celery.backends.redis import RedisBackend
from celery.exceptions import BackendStoreError
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

REST_SECONDS = 2.0
"""After a failure, how long Redis is left alone: tasks must not wait for a time-out each time."""
MAX_WAITING = 10_000
"""Results kept for a Redis that is away; of more, the oldest are let go."""

Stored = tuple[Any, str, tuple[Any, ...], dict[str, Any]]


class ResultView(RedisBackend):
    """Stores results in Redis, and those that it can't take when it is there again.

    The ledger has the real results. Celery takes an error of the backend for one of the worker:
    it then keeps the task's slot for ever, until none is left (seen with Celery 5.7).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._resting_until = 0.0
        self._waiting: dict[str, Stored] = {}
        self._waiting_lock = threading.Lock()

    def store_result(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        """Store a result now, or keep it for later."""
        with self._waiting_lock:
            # The newest state of a task comes last, and alone.
            self._waiting.pop(task_id, None)
        if self._is_stored(task_id, (result, state, args, kwargs)):
            return result
        with self._waiting_lock:
            self._waiting[task_id] = (result, state, args, kwargs)
            if len(self._waiting) > MAX_WAITING:
                del self._waiting[next(iter(self._waiting))]
        return result

    def catch_up(self) -> None:
        """Store what waits. Called again and again while a worker runs."""
        while self._waiting:
            with self._waiting_lock:
                task_id = next(iter(self._waiting), None)
                if task_id is None:
                    return
                stored = self._waiting[task_id]
            if not self._is_stored(task_id, stored):
                return
            with self._waiting_lock:
                if self._waiting.get(task_id) is stored:
                    del self._waiting[task_id]

    def _is_stored(self, task_id: str, stored: Stored) -> bool:
        if time.monotonic() < self._resting_until:
            return False
        result, state, args, kwargs = stored
        try:
            super().store_result(task_id, result, state, *args, **kwargs)
        except (BackendStoreError, OperationalError, RedisError, OSError) as error:
            self._resting_until = time.monotonic() + REST_SECONDS
            logger.warning("job %s is shown to Celery later (%s)", task_id, type(error).__name__)
            return False
        return True
