"""Where each job stands: read from Redis, and from the ledger where Redis does not know."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from redis import Redis

from promptstack.config.names import PROGRESS_KEY
from promptstack.repositories.jobs.records import JobSnapshot
from promptstack.repositories.models import Job, JobState
from promptstack.repositories.session import Ledger
from promptstack.services.jobs.redis_view import RedisView
from promptstack.services.jobs.views import JobView
from promptstack.services.validation.ids import read_id


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
    attempt: int = 0
    """How often workers have begun it."""
    error_code: str = ""

    @classmethod
    def of(cls, job: Job | JobSnapshot | JobView) -> "Progress":
        """The progress of a job that was read from the ledger."""
        return cls(
            job_id=job.id,
            state=JobState(job.state),
            current=job.current,
            total=job.total,
            failures=job.failures,
            error=job.error or "",
            retry_at=job.not_before.timestamp() if job.not_before else 0.0,
            attempt=job.attempt,
            error_code=job.error_code or "",
        )


class ProgressService:
    """Writes and reads the progress of jobs."""

    def __init__(
        self,
        redis: "Redis",
        ledger: Ledger,
        *,
        ttl_seconds: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._view = RedisView(redis, Progress, PROGRESS_KEY, ttl_seconds=ttl_seconds, clock=clock)
        self._wake: Callable[[], object] | None = None
        self._waiting: dict[UUID, Progress] = {}
        self._waiting_lock = threading.Lock()

    def write_behind(self, wake: Callable[[], object]) -> None:
        """Leave the writing to `flush`, many jobs at a time. For workers: `wake` has it called."""
        self._wake = wake

    def publish(self, *shown: Progress) -> None:
        """Show where jobs stand, now or soon. Redis being away costs the view, not the job."""
        newest = {progress.job_id: progress for progress in shown}
        if self._wake is None:
            self._view.write(newest)
            return
        with self._waiting_lock:
            self._waiting.update(newest)
        self._wake()

    def flush(self) -> None:
        """Show what waits. Called again and again while a worker runs."""
        with self._waiting_lock:
            waiting, self._waiting = self._waiting, {}
        if waiting:
            self._view.write(waiting)

    def rebuild(self, job_ids: Sequence[UUID]) -> list[Progress]:
        """Read jobs' progress from the ledger and show it anew; unknown ids are left out."""
        with self._ledger.transaction() as work:
            found = [Progress.of(job) for job in work.jobs.get_all(job_ids)]
        if found:
            self.publish(*found)
        return found

    def read(self, job_ids: Sequence[UUID | str]) -> dict[UUID, Progress]:
        """Where these jobs stand; from Redis, and from the ledger what is missing or stale."""
        ids = [read_id(job_id, "job") for job_id in job_ids]
        found = self._view.read(ids)
        missing = [job_id for job_id in ids if job_id not in found]
        return found | {progress.job_id: progress for progress in self.rebuild(missing)}
