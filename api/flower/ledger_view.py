"""Shows in Flower the jobs that Celery's events did not show it.

Flower learns of jobs by Celery's events, which are not stored. It knows nothing of what happened
before it started or while Redis was away, nor of a job that ended without a message, such as one
that was cancelled while it waited for a retry.
"""

import logging
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import UUID

from celery import states
from tornado.ioloop import IOLoop

from promptstack.config.errors import PromptStackError
from promptstack.repositories.models import JobState
from promptstack.services.jobs.progress import Progress, ProgressService
from promptstack.services.jobs.service import JobService
from promptstack.services.jobs.views import JobView, Wait, asked
from promptstack.tasks.job_task import PROGRESS
from promptstack.tasks.messages import TASKS

logger = logging.getLogger(__name__)

HISTORY_JOBS = 1_000
PAGE_JOBS = 50
READ_SECONDS = 30.0
"""Time between two looks for jobs that Flower lacks."""
CHECK_JOBS = 100
"""Open jobs looked up in one round."""
QUIET_SECONDS = 3.0
"""A job with an event within this time is not looked up."""

STATES = {
    JobState.RUNNING: PROGRESS,
    JobState.SUCCEEDED: states.SUCCESS,
    JobState.FAILED: states.FAILURE,
    JobState.EXPIRED: states.FAILURE,
    JobState.CANCELLED: states.REVOKED,
}


class LedgerView:
    """Brings Flower's state up to the ledger's."""

    def __init__(self, jobs: JobService, progress: ProgressService, flower_state: Any) -> None:
        self._jobs = jobs
        self._progress = progress
        self._state = flower_state
        self._read_at = -READ_SECONDS
        self._to_check: deque[str] = deque()

    async def catch_up(self) -> None:
        """Add the jobs that Flower lacks, and correct those that may be stale."""
        loop = IOLoop.current()
        try:
            if time.monotonic() - self._read_at >= READ_SECONDS:
                self._add(await loop.run_in_executor(None, self._read_missed))
                self._read_at = time.monotonic()
            asked = self._choose()
            found = await loop.run_in_executor(None, self._progress.read, list(asked))
            queued = [one for one, there in found.items() if there.state is JobState.QUEUED]
            waits = await loop.run_in_executor(None, self._jobs.waits_of, queued)
        except PromptStackError as error:
            logger.warning("Flower shows only what events tell: %s", error)
            return
        for job_id, progress in found.items():
            task = self._task(str(job_id))
            # An event that came meanwhile is newer than what was read from the ledger.
            if task is not None and task.timestamp == asked[job_id]:
                _show(task, progress, waits.get(job_id))
                self._state.search_engine.upsert(task)

    def _read_missed(self) -> list[JobView]:
        """The newest jobs that Flower lacks, oldest first."""
        missed: list[JobView] = []
        after = None
        for _ in range(HISTORY_JOBS // PAGE_JOBS):
            page = self._jobs.get_many(limit=PAGE_JOBS, after=after)
            lacking = [job for job in page if not self._knows(job)]
            missed += (job.model_copy(update={"result": None}) for job in lacking)
            if not lacking or len(page) < PAGE_JOBS:
                break
            after = page[-1].id
        return missed[::-1]

    def _knows(self, job: JobView) -> bool:
        task = self._task(str(job.id))
        return task is not None and task.name is not None

    def _add(self, jobs: Iterable[JobView]) -> None:
        for job in jobs:
            task, is_new = self._state.get_or_create_task(str(job.id))
            task.name = str(TASKS[job.kind])
            task.args = f"job {job.id} with {asked(job.provider, job.model)}"
            if is_new:
                started, finished = _timestamp(job.started_at), _timestamp(job.finished_at)
                task.received = job.created_at.timestamp()
                task.started = started
                task.timestamp = finished or started or task.received
                task.runtime = finished - started if started and finished else None
                _show(task, Progress.of(job), job.waits)
        self._state.search_engine.rebuild(self._state.tasks.items())

    def _choose(self) -> dict[UUID, float]:
        """Pick open jobs in turn, each with the time of its last event."""
        if not self._to_check:
            tasks = self._state.tasks.data.items()
            self._to_check.extend(job_id for job_id, task in tasks if not task.ready)
        chosen = {}
        for _ in range(min(CHECK_JOBS, len(self._to_check))):
            job_id = self._to_check.popleft()
            task = self._task(job_id)
            if task is not None and time.time() - task.timestamp > QUIET_SECONDS:
                with suppress(ValueError):  # another product's task on the same broker
                    chosen[UUID(job_id)] = task.timestamp
        return chosen

    def _task(self, job_id: str) -> Any:
        # Not by tasks.get: that counts as use, and Flower forgets the least used tasks.
        return self._state.tasks.data.get(job_id)


def _show(task: Any, progress: Progress, waits: Wait | None) -> None:
    """Write a job's progress, and what it waits for, into Flower's record of it."""
    if progress.state is not JobState.QUEUED:
        task.state = STATES[progress.state]
    elif progress.retry_at > time.time():
        task.state = states.RETRY
    elif task.state in {PROGRESS, states.STARTED}:
        task.state = states.PENDING  # its worker handed it back, or died
    if progress.error not in (task.exception or ""):
        task.exception = progress.error
    if task.state in {PROGRESS, states.SUCCESS}:
        task.result = f"{progress.current} of {progress.total}"
    elif waits is not None:
        task.result = f"waits ({waits.reason}): {waits.detail}"


def _timestamp(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment else None
