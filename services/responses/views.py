"""Responses as their users see them."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from promptstack.repositories.models import Job
from promptstack.repositories.response_models import StoredResponse
from promptstack.services.jobs.views import JobView
from promptstack.services.openai.responses import (
    ResponseStatus,
    response_error,
    response_object,
    status_of,
)


@dataclass(frozen=True)
class ResponseView:
    """A response with its job."""

    job: JobView
    asked: dict[str, Any]
    """The body that asked for it, without its input."""
    is_kept: bool
    """Whether it may be asked for later."""

    @classmethod
    def of(cls, row: StoredResponse, job: Job) -> "ResponseView":
        """The view of rows."""
        return cls(JobView.model_validate(job), row.asked, row.is_kept)

    @property
    def id(self) -> UUID:
        """Its job's id."""
        return self.job.id

    @property
    def is_background(self) -> bool:
        """Whether nobody waits for it."""
        return bool(self.asked.get("background"))

    @property
    def status(self) -> ResponseStatus:
        """Where it stands."""
        return status_of(self.job.state, self.job.result)

    def with_job(self, job: JobView) -> "ResponseView":
        """The same with its job as it is now."""
        return ResponseView(job, self.asked, self.is_kept)

    def body(self, status: ResponseStatus | None = None) -> dict[str, Any]:
        """The response as it is sent; with `status`, as it was before its end."""
        job = self.job
        shown = status or self.status
        is_failed = shown is ResponseStatus.FAILED
        return response_object(
            job.id,
            self.asked,
            created_at=int(job.created_at.timestamp()),
            status=shown,
            model=job.model,
            result=job.result,
            error=response_error(job.error_code, job.error) if is_failed else None,
            completed_at=int(job.finished_at.timestamp()) if job.finished_at else None,
        )
