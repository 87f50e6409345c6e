"""Tells at once that jobs have ended: a client may wait for nothing else.

The views of jobs are written many at a time, some moments later. This is one word on the channel
that watchers of a job listen to; they ask the ledger for the rest.
"""

import asyncio
import logging

from redis.asyncio import Redis
from redis.exceptions import RedisError

from promptstack.config.names import PROGRESS_KEY
from promptstack.repositories.jobs.records import JobSnapshot

logger = logging.getLogger(__name__)

JOIN_SECONDS = 0.005
"""From one exchange with Redis to the next: ends that come meanwhile go together."""
CLOSE_SECONDS = 1.0


class EndTeller:
    """Tells the ends of a worker's jobs. Used on the event loop only; nobody waits for it.

    Redis being away costs the word: watchers look again and again.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._due: list[tuple[str, str]] = []
        self._telling: asyncio.Task[None] | None = None

    def tell(self, job: JobSnapshot) -> None:
        """Tell that a job has ended."""
        self._due.append((PROGRESS_KEY.format(id=job.id), str(job.state)))
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def aclose(self) -> None:
        """Tell what is due, if Redis is there, and close the connection."""
        if self._telling is not None:
            await asyncio.wait([self._telling], timeout=CLOSE_SECONDS)
            self._telling.cancel()
        await self._redis.aclose()

    async def _tell(self) -> None:
        while self._due:
            due, self._due = self._due, []
            pipeline = self._redis.pipeline(transaction=False)
            for channel, state in due:
                pipeline.publish(channel, state)
            try:
                await pipeline.execute(raise_on_error=False)
            except (RedisError, OSError) as error:
                logger.debug("ends are told later: Redis is away (%s)", type(error).__name__)
            await asyncio.sleep(JOIN_SECONDS)
