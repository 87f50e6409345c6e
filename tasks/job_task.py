"""The Celery task class of all jobs: it tells Celery and Flower what became of a job."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from celery import Task, states
from celery.exceptions import Ignore, Retry

from repositories.models import JobState
from services.embedding import EmbeddingService
from services.errors import InvalidInput
from services.execution import JobOutcome
from services.generation import GenerationService
from services.progress import Progress

PROGRESS = "PROGRESS"


class JobFailed(Exception):
    """The job has failed; the ledger says why, and so does this in short."""


class Workshop(Protocol):
    """The services that tasks call."""

    @property
    def generation(self) -> GenerationService:
        """Runs generation jobs."""

    @property
    def embedding(self) -> EmbeddingService:
        """Runs embedding jobs."""


class JobTask(Task[Any, Any]):
    """A task whose message is the id of a job in the ledger."""

    abstract = True
    workshop: Workshop
    throws = (JobFailed,)  # expected: Celery logs it as one line, without a traceback

    def job_id(self, text: str) -> UUID:
        """Read a message. Raises `InvalidInput`: then it is not ours."""
        try:
            return UUID(text)
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidInput("The message holds no job id; enqueue by the API.") from error

    @property
    def report(self) -> Callable[[Progress], None]:
        """What tells AsyncResult and Flower about progress."""
        return self._report

    def finish(self, outcome: JobOutcome) -> dict[str, Any]:
        """Turn a job's outcome into the task's: a result, or the exception that Celery knows.

        A retry is not a message with an ETA, which would wait in a worker's memory: the ledger
        holds the job, and the reconciler rings it when it is due.
        """
        match outcome.state:
            case JobState.SUCCEEDED:
                return outcome.summary
            case JobState.FAILED | JobState.EXPIRED:
                raise JobFailed(outcome.error) from None
            case JobState.QUEUED:
                wait = timedelta(seconds=outcome.retry_in or 0.0)
                raise Retry(exc=JobFailed(outcome.error), when=datetime.now(UTC) + wait)
            case JobState.CANCELLED:
                self.backend.store_result(str(self.request.id), None, states.REVOKED)
                # The state is named because Flower would else keep a later-looking PROGRESS.
                self._send_event("task-revoked", state=states.REVOKED, terminated=True)
                raise Ignore
            case _:
                raise Ignore

    def _report(self, progress: Progress) -> None:
        meta = {"current": progress.current, "total": progress.total}
        self.update_state(state=PROGRESS, meta=meta)
        self._send_event("task-progress", result=f"{progress.current} of {progress.total}", **meta)

    def _send_event(self, name: str, **fields: Any) -> None:
        self.send_event(name, retry=False, **fields)
