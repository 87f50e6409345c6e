"""Operations: what is done to all jobs that a filter matches."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import Field

from promptstack_client.errors import Unsuccessful
from promptstack_client.models.base import HasId, Json, Model
from promptstack_client.models.jobs import GOES_ON, JobState


class OperationFailure(Model):
    """A job that it could not be done to."""

    job_id: UUID
    error: str


class Operation(HasId):
    """All jobs that a filter matches are retried or cancelled, step by step."""

    action: Literal["retry", "cancel"] | str
    state: JobState
    filter: Json = Field(default_factory=dict)
    """As it was asked for."""
    matched: int | None = None
    """Jobs that the filter matches; None until it has begun."""
    done: int = 0
    skipped: int = 0
    """Jobs that had changed their state by the time it came to them."""
    failed: int = 0
    failures: tuple[OperationFailure, ...] = ()
    """The first of the failed ones, each with its reason."""
    error_code: str | None = None
    error: str | None = None
    """Why it ended before it was done."""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.state not in GOES_ON

    def checked(self) -> "Operation":
        """The operation itself. Raises `Unsuccessful` where it ended before it was done."""
        if self.ended and self.state != "succeeded":
            raise Unsuccessful(f"The operation {self.id}", self.state, self.error_code, self.error)
        return self
