"""Celery's result backend, which here is only a view for AsyncResult and Flower."""

import logging
import time
from typing import Any

from celery.backends.redis import RedisBackend
from celery.exceptions import BackendStoreError
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

REST_SECONDS = 2.0
"""After a failure, how long Redis is left alone: tasks must not wait for a time-out each time."""


class ResultView(RedisBackend):
    """Stores results in Redis while it answers, and lets them go while it doesn't.

    The ledger has the real results. Celery takes an error of the backend for one of the worker:
    it then keeps the task's slot for ever, until none is left (seen with Celery 5.7).
    """

    _resting_until = 0.0

    def store_result(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        """Store a result, or let it go."""
        if time.monotonic() < self._resting_until:
            return result
        try:
            return super().store_result(task_id, result, state, *args, **kwargs)
        except (BackendStoreError, OperationalError, RedisError, OSError) as error:
            self._resting_until = time.monotonic() + REST_SECONDS
            logger.warning("job %s is not shown to Celery (%s)", task_id, type(error).__name__)
            return result
