"""The Celery task class of all jobs. It tells Celery and Flower what became of a job.

The body of a task is a coroutine; `worker/pool.py` runs it. When it has ended, Celery calls the
task, and hears from it what came of the job.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from celery import Task, states
from celery.app.task import Context
from celery.exceptions import CeleryError, Ignore, Retry
from celery.worker.request import Request
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from promptstack.repositories.models import JobState
from promptstack.services.errors import InvalidInput
from promptstack.services.execution.executor import Executor, JobOutcome
from promptstack.services.jobs.progress import Progress
from promptstack.services.llm.event_loop import EventLoop
from promptstack.tasks.views.monitors import Monitors

logger = logging.getLogger(__name__)

PROGRESS = "PROGRESS"
REQUEST: ContextVar[Context] = ContextVar("request")
"""The message of the job that a coroutine runs. Celery's own `self.request` is of a thread."""


class JobFailed(Exception):
    """The job has failed. The message says why in short, and the ledger has the rest."""

    def __repr__(self) -> str:
        """What Flower and the log show."""
        return str(self)


class JobWaits(Retry):
    """The job waits for its next try."""

    def __repr__(self) -> str:
        """What Flower shows."""
        return f"{self.exc} Next try: {self.when:%Y-%m-%d %H:%M:%S} UTC."


class ReceivedMessage(NamedTuple):
    """A message, as it was read."""

    job_id: UUID
    sent_at: datetime | None
    """By the ledger's clock; None if another service has sent the message."""


class JobRequest(Request):
    """A message in a worker."""

    def acknowledge(self) -> None:
        """Spare Redis the exchange about a message that it has no record of (config/celery.py)."""
        app: Any = self.app
        if not app.conf.worker_disable_prefetch:
            super().acknowledge()

    def terminate(self, *_: Any, **__: Any) -> None:
        """Let it run: `revoke --terminate` would end the process, which runs all jobs."""
        logger.warning(
            "job %s is not ended by Celery's revoke; cancel it by the API or "
            "`promptstack jobs cancel`",
            self.id,
        )

    def cancel(self, *_: Any, **__: Any) -> None:
        """Hand it back to the queue, as all jobs of a worker that is to stop at once."""
        task: Any = self.task
        task.executor.hand_back_all()


class JobTask(Task[Any, Any]):
    """A task whose message is the id of a job in the ledger."""

    abstract = True
    executor: Executor
    monitors: Monitors
    loop: EventLoop
    """Runs the task's coroutine."""
    Request = "promptstack.tasks.job_task:JobRequest"
    # Expected: Celery logs these as one line, without a traceback.
    throws = (JobFailed, InvalidInput)
    # A job starts when it is claimed, and `on_progress` says so. Celery would say it for every
    # message: also for one of a job that has ended, runs elsewhere, or doesn't exist.
    track_started = False

    async def run_message(self, request: dict[str, Any]) -> JobOutcome:
        """Run the coroutine of a message."""
        REQUEST.set(Context(request))
        outcome: JobOutcome = await self.run(*request["args"], **request["kwargs"])
        return outcome

    def __call__(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Tell Celery what came of a message whose coroutine has ended."""
        request: Any = self.request  # more than its types tell
        if request.ended.cancelled():
            raise Ignore  # the event loop was closed first; the ledger will tell
        return self.finish(request.ended.result())

    def read(self, job: str, sent_at: str | None) -> ReceivedMessage:
        """Read a message. Raises `InvalidInput` if it holds no job id."""
        try:
            sent = datetime.fromisoformat(sent_at) if sent_at else None
            # A time without a zone can't be compared.
            return ReceivedMessage(UUID(job), sent if sent and sent.tzinfo else None)
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidInput("The message holds no job id; enqueue by the API.") from error

    def on_progress(self, progress: Progress) -> None:
        """Tell AsyncResult and Flower about progress."""
        meta = {"current": progress.current, "total": progress.total}
        shown = f"{progress.current} of {progress.total}"
        request = REQUEST.get()
        with self._viewers_may_be_away(request):
            self.backend.store_result(str(request.id), meta, PROGRESS, request=request)
            self._send_event(request, "task-progress", PROGRESS, result=shown, **meta)

    def finish(self, outcome: JobOutcome) -> dict[str, Any]:
        """Turn a job's outcome into the task's result, or into the exception that Celery knows.

        A retry sends no message with an ETA, which would wait in a worker's memory. The job waits
        in the ledger, and the reconciler publishes it when it is due.
        """
        match outcome.state:
            case JobState.SUCCEEDED:
                return outcome.summary
            case JobState.FAILED | JobState.EXPIRED:
                raise JobFailed(outcome.error) from None
            case JobState.QUEUED:
                wait = timedelta(seconds=outcome.retry_in or 0.0)
                raise JobWaits(exc=JobFailed(outcome.error), when=datetime.now(UTC) + wait)
            case JobState.CANCELLED:
                self._show_cancelled()
                raise Ignore
            case _:
                raise Ignore

    def _show_cancelled(self) -> None:
        with self._viewers_may_be_away(self.request):
            self.backend.mark_as_revoked(str(self.request.id), "cancelled", request=self.request)
            self._send_event(self.request, "task-revoked", states.REVOKED, terminated=True)

    @contextmanager
    def _viewers_may_be_away(self, request: Context) -> Iterator[None]:
        """Log an outage of Redis and go on: only the view suffers, not the job."""
        try:
            yield
        except (CeleryError, OperationalError, RedisError, OSError) as error:
            name = type(error).__name__
            logger.warning("job %s is not shown to Celery (%s)", request.id, name)

    def _send_event(self, request: Context, name: str, state: str, **fields: Any) -> None:
        """Tell monitors the state by its own field.

        From the name alone they would rank states, and keep the highest: PROGRESS for a cancelled
        job, FAILURE for a failed one that somebody has retried.
        """
        self.monitors.send(name, str(request.id), state=state, **fields)
