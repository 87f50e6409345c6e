"""Where each job stands, in Redis for all to watch. Only a cache: the ledger can rebuild it."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from redis import Redis
from redis.exceptions import RedisError

from promptstack.config.names import PROGRESS_KEY
from promptstack.repositories.jobs.records import JobSnapshot
from promptstack.repositories.models import Job, JobState
from promptstack.repositories.session import Ledger
from promptstack.services.circuit_breaker import CircuitBreaker

logger = logging.getLogger(__name__)

STALE_SECONDS = 5.0
"""An entry older than this is checked against the ledger: its writer may have died, or Redis may
have been away when the job ended or was queued again."""


@dataclass(frozen=True)
class Progress:
    """Where a job stands."""

    job_id: UUID
    state: JobState
    current: int
    total: int
    failures: int = 0
    error: str = ""
    """Why the last attempt failed; empty if none did."""
    retry_at: float = 0.0
    """Unix time of the next attempt, 0 when none is waited for."""

    @classmethod
    def of(cls, job: Job | JobSnapshot) -> "Progress":
        """Read progress off the ledger's row."""
        return cls(
            job_id=job.id,
            state=JobState(job.state),
            current=job.current,
            total=job.total,
            failures=job.failures,
            error=job.error or "",
            retry_at=job.not_before.timestamp() if job.not_before else 0.0,
        )


class ProgressService:
    """Writes and reads progress."""

    def __init__(
        self,
        redis: "Redis",
        ledger: Ledger,
        *,
        ttl_seconds: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = redis
        self._ledger = ledger
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._circuit = CircuitBreaker(clock=clock)
        self._is_behind = False
        self._waiting: dict[UUID, Progress] = {}
        self._waiting_lock = threading.Lock()

    def write_behind(self) -> None:
        """Leave the showing to `flush`, many jobs at a time; in workers, which call it."""
        self._is_behind = True

    def publish(self, *shown: Progress) -> None:
        """Show where jobs stand, now or soon. Redis being away costs the view, not the job."""
        if not self._is_behind:
            self._show(shown)
            return
        with self._waiting_lock:
            self._waiting.update({progress.job_id: progress for progress in shown})

    def flush(self) -> None:
        """Show what waits. Called again and again while a worker runs."""
        with self._waiting_lock:
            waiting, self._waiting = self._waiting, {}
        if waiting:
            self._show(waiting.values())

    def _show(self, shown: Iterable[Progress]) -> None:
        if self._circuit.is_open():
            return
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for progress in shown:
                    key = PROGRESS_KEY.format(job_id=progress.job_id)
                    fields: dict[Any, str] = {
                        name: str(value) for name, value in vars(progress).items()
                    }
                    fields["updated_at"] = str(self._clock())
                    pipeline.hset(key, mapping=fields)
                    pipeline.expire(key, self._ttl_seconds)
                pipeline.execute()
        except RedisError as error:
            self._rest(error)

    def rebuild(self, job_ids: Sequence[UUID]) -> list[Progress]:
        """Read jobs' progress from the ledger and show it anew; unknown ids are left out."""
        with self._ledger.transaction() as work:
            found = [Progress.of(job) for job in work.jobs.get_all(job_ids)]
        if found:
            self.publish(*found)
        return found

    def read(self, job_ids: Sequence[UUID]) -> dict[UUID, Progress]:
        """Where these jobs stand; from Redis, and from the ledger what is missing or stale."""
        found = self._cached(job_ids)
        missing = [job_id for job_id in job_ids if job_id not in found]
        return found | {progress.job_id: progress for progress in self.rebuild(missing)}

    def _cached(self, job_ids: Sequence[UUID]) -> dict[UUID, Progress]:
        if self._circuit.is_open():
            return {}
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for job_id in job_ids:
                    pipeline.hgetall(PROGRESS_KEY.format(job_id=job_id))
                entries = pipeline.execute()
        except RedisError as error:
            self._rest(error)
            return {}  # the ledger answers instead
        fresh = (entry for entry in entries if entry and not self._is_stale(entry))
        return {progress.job_id: progress for progress in map(_parse, fresh)}

    def _rest(self, error: RedisError) -> None:
        self._circuit.trip()
        logger.warning("progress is not shown: Redis is away (%s)", type(error).__name__)

    def _is_stale(self, entry: dict[str, str]) -> bool:
        return self._clock() - float(entry["updated_at"]) > STALE_SECONDS


def _parse(entry: dict[str, str]) -> Progress:
    return Progress(
        job_id=UUID(entry["job_id"]),
        state=JobState(entry["state"]),
        current=int(entry["current"]),
        total=int(entry["total"]),
        failures=int(entry["failures"]),
        error=entry["error"],
        retry_at=float(entry["retry_at"]),
    )
