"""What happens to jobs and runs, as the server tells it."""

from decimal import Decimal
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

from promptstack_client.models.base import Json, Model
from promptstack_client.models.jobs import Job, Waits
from promptstack_client.models.runs import Run

T_co = TypeVar("T_co", covariant=True)


class JobStatus(Model):
    """Where a job stands (`state`)."""

    id: UUID
    state: str
    current: int = 0
    total: int = 1
    attempt: int = 0
    error_code: str | None = None
    error: str | None = None
    waits: Waits | None = None


class MoreText(Model):
    """More of a job's text (`text`)."""

    text: str


class Restart(Model):
    """The text begins again: forget what came before (`restart`)."""

    attempt: int = 0
    reason: str = ""


class RunProgress(Model):
    """How far a run is (`progress`)."""

    id: UUID
    state: str
    total: int
    succeeded: int
    failed: int
    reused: int = 0
    cost_usd: Decimal | None = None
    eta_seconds: float | None = None
    items_per_second: float | None = None


class Event(Model, Generic[T_co]):
    """Something that has happened."""

    id: str
    """Give it as `since` to go on after this event."""
    name: Literal["state", "text", "restart", "progress", "end"] | str
    data: T_co


JobEvent = Event[JobStatus | MoreText | Restart | Job | Json]
"""At the `end` its data is the whole job; a dict where a newer server tells something else."""
RunEvent = Event[RunProgress | Run | Json]
"""At the `end` its data is the whole run; a dict where a newer server tells something else."""

JOB_EVENTS: dict[str, Any] = {
    "state": JobStatus,
    "text": MoreText,
    "restart": Restart,
    "end": Job,
}
RUN_EVENTS: dict[str, Any] = {"progress": RunProgress, "end": Run}


class Piece(Model):
    """A piece of a text that is being produced."""

    kind: Literal["text", "restart", "end"]
    """`restart`: the text begins again, forget what came before. `end`: it is whole."""
    text: str = ""
    reason: str = ""
    """Why the text begins again."""
    job: Job | None = None
    """At the end: the job, with the whole text as its result."""
