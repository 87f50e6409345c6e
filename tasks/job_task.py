"""The Celery task class of all jobs. It tells Celery and Flower what became of a job.

The body of a task is a coroutine; `worker/pool.py` runs it. When it has ended, Celery calls the
task, and hears from it what came of the job.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, NoReturn
from uuid import UUID

from celery import Task, states
from celery.app.task import Context
from celery.exceptions import CeleryError, Ignore, Retry
from celery.worker.request import Request
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from promptstack.repositories.errors import TransientLedgerError
from promptstack.repositories.models import JobState
from promptstack.services.errors import InvalidInput
from promptstack.services.execution.executor import NOT_OURS, Executor, JobOutcome
from promptstack.services.execution.sent_jobs import SentJobs
from promptstack.services.jobs.progress import Progress
from promptstack.services.llm.event_loop import EventLoop
from promptstack.tasks.sent_requests import KINDS, SHOWN, holds_request, sent_job
from promptstack.tasks.views.monitors import Monitors

logger = logging.getLogger(__name__)

PROGRESS = "PROGRESS"
NO_JOB = "The message holds no job id; enqueue by the API."
MOST_ARGUMENTS = 2
"""Of a message that holds a job id."""
REQUEST: ContextVar[Context] = ContextVar("request")
"""The message of the job that a coroutine runs. Celery's own `self.request` is of a thread."""


def _is_away(error: BaseException | None) -> bool:
    return isinstance(error, TransientLedgerError)


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

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        mine: Any = self  # more than its types tell
        if holds_request(mine.args, mine.kwargs):
            # Whatever its sender shows of it: no prompt goes to monitors and logs from here.
            mine._argsrepr, mine._kwargsrepr = SHOWN, "{}"
            mine._request_dict |= {"argsrepr": SHOWN, "kwargsrepr": "{}"}
            payload = message.payload
            mine._request_dict["embed"] = payload[2] if isinstance(payload, list) else {}
            mine._eta = None  # until then it waits in the ledger, and not in this process

    def info(self, safe: bool = True) -> Any:
        """What `inspect` and Flower show: the arguments as this worker shows them."""
        return super().info(safe=True)

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
    sent_jobs: SentJobs
    monitors: Monitors
    loop: EventLoop
    """Runs the task's coroutine."""
    Request = "promptstack.tasks.job_task:JobRequest"
    # Expected: Celery logs these as one line, without a traceback.
    throws = (JobFailed, InvalidInput)
    # A chain of another service may have a task of ours, with a request, after another one.
    typing = False
    # A job starts when it is claimed, and `on_progress` says so. Celery would say it for every
    # message: also for one of a job that has ended, runs elsewhere, or doesn't exist.
    track_started = False

    async def run_message(self, request: dict[str, Any]) -> JobOutcome:
        """Run the coroutine of a message. One with a request is stored first, under its own id."""
        if holds_request(request["args"], request["kwargs"]) and self.name in KINDS:
            job = sent_job(request)
            request["is_stored"] = False
            await self.sent_jobs.store(job)
            request |= {"is_stored": True, "args": [str(job.id)], "kwargs": {}}
            if job.queue.is_bulk:
                return NOT_OURS  # it waits for its user's turn
        if not 1 <= len(request["args"]) + len(request["kwargs"]) <= MOST_ARGUMENTS:
            raise InvalidInput(NO_JOB)
        REQUEST.set(Context(request))
        outcome: JobOutcome = await self.run(*request["args"], **request["kwargs"])
        if outcome.is_followed and outcome.is_end:
            told = await self.sent_jobs.take(UUID(request["id"]))
            request |= {"told": told, **(told or {})}
        return outcome

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Tell Celery what came of a message whose coroutine has ended."""
        request: Any = self.request  # more than its types tell
        if request.ended.cancelled():
            raise Ignore  # the event loop was closed first; the ledger will tell
        if request.get("is_stored") is False and _is_away(request.ended.exception()):
            self._send_back(args, kwargs)
        if holds_request(args, kwargs):
            request.args, request.kwargs = [request.id], {}  # the result shows them
        outcome = request.ended.result()
        if outcome.is_end and (outcome.is_followed or request.get("is_stored")):
            if not request.get("told"):
                raise Ignore  # another message has told it, or does so now
            # What its own message said of what follows; another one, sent later, says nothing.
            vars(request).update(request.told)
        return self.finish(outcome)

    def after_return(self, status: str, *_: Any) -> None:
        """Note that Celery has told whoever waits for the job."""
        request: Any = self.request
        if request.get("told"):
            is_success = request.ended.result().state is JobState.SUCCEEDED
            if is_success == (status == states.SUCCESS):
                self._note_told(request)

    def read(self, job: str, sent_at: str | None) -> ReceivedMessage:
        """Read a message. Raises `InvalidInput` if it holds no job id."""
        try:
            sent = datetime.fromisoformat(sent_at) if sent_at else None
            # A time without a zone can't be compared.
            return ReceivedMessage(UUID(job), sent if sent and sent.tzinfo else None)
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidInput(NO_JOB) from error

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
                if self.request.get("told"):
                    self._note_told(self.request)
                raise Ignore
            case _:
                raise Ignore

    def _note_told(self, request: Any) -> None:
        self.loop.submit(self.sent_jobs.told(UUID(request.id)))

    def _send_back(self, args: Any, kwargs: Any) -> NoReturn:
        """Put a message back that this worker could not store before it has to stop."""
        # What this worker has noted of the message counts as headers.
        sent = self.signature_from_request(self.request, args, kwargs, headers={})
        sent.apply_async(argsrepr=SHOWN, kwargsrepr="{}")
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
