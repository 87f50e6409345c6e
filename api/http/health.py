"""`/healthz`: whether this process, the database and Redis answer."""

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request, Response, status
from pydantic import BaseModel

from promptstack.tasks.composition import PromptStack

logger = logging.getLogger(__name__)
router = APIRouter(tags=["health"])

PATIENCE_SECONDS = 0.8
"""Kubernetes gives a probe one second."""
T = TypeVar("T")


class Health(BaseModel):
    """What answers. Without Redis jobs are still accepted; without the database nothing is."""

    version: str
    database: bool
    redis: bool
    workers: int | None
    """Workers alive; null where the database does not say."""


class Probe(Generic[T]):
    """Asks one server.

    It uses one thread, however many requests wait for the answer: threads and connections must not
    pile up before a server that hangs.
    """

    def __init__(self, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._thread = CapacityLimiter(1)
        self._asking: asyncio.Task[T | None] | None = None

    async def answer(self) -> T | None:
        """Return the server's answer, or None if none comes in time."""
        asking = self._asking
        if asking is None or asking.done():
            running = to_thread.run_sync(self._try, limiter=self._thread)
            asking = self._asking = asyncio.create_task(running)
        await asyncio.wait({asking}, timeout=PATIENCE_SECONDS)
        return asking.result() if asking.done() else None

    def _try(self) -> T | None:
        try:
            return self._ask()
        except Exception as error:  # noqa: BLE001 - whatever it is, the server gave no answer
            logger.warning("a server did not answer the health check: %s", type(error).__name__)
            return None


class HealthCheck:
    """Asks the servers that this process uses."""

    def __init__(self, stack: PromptStack) -> None:
        self._stack = stack
        self._workers = Probe(self._count_workers)
        self._redis = Probe(self._ping_redis)

    async def look(self) -> Health:
        """Ask all servers at once."""
        workers, redis = await asyncio.gather(self._workers.answer(), self._redis.answer())
        return Health(
            version=self._stack.settings.version,
            database=workers is not None,
            redis=redis is not None,
            workers=workers,
        )

    def _count_workers(self) -> int:
        with self._stack.ledger.transaction() as unit:
            return unit.workers.count_alive(self._stack.settings.worker_lost_seconds)

    def _ping_redis(self) -> bool:
        return bool(self._stack.redis.ping())


@router.get("/healthz", responses={503: {"model": Health, "description": "No database."}})
async def get_health(request: Request, response: Response) -> Health:
    """Report which servers answer: 200, or 503 without the database."""
    check: HealthCheck = request.app.state.health
    health = await check.look()
    if not health.database:
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return health
