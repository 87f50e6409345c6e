"""Runs, their results and their failures, as the server shows them."""

from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Literal
from uuid import UUID

from pydantic import Field

from promptstack_client.errors import Unsuccessful
from promptstack_client.models.base import HasId, Json, Model

RunState = (
    Literal["preparing", "running", "finalizing", "completed", "failed", "cancelled", "expired"]
    | str
)
GOES_ON = frozenset({"preparing", "running", "finalizing"})


class Run(HasId):
    """A batch: many items under one id."""

    kind: Literal["generation", "embedding"] | str
    state: RunState
    name: str = ""
    collection_id: UUID | None = None
    provider: str
    model: str
    tags: tuple[str, ...] = ()
    total: int
    succeeded: int
    failed: int
    reused: int = 0
    calls: int = 0
    tokens: int = 0
    cost_usd: Decimal | None = None
    unknown_cost: int = 0
    """Calls whose cost nobody knows."""
    max_cost_usd: Decimal | None = None
    in_flight: int | None = None
    output_url: str | None = None
    output_written_at: datetime | None = None
    """When the results were written there."""
    error_code: str | None = None
    error: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether it is over; some of its items may have failed."""
        return self.state not in GOES_ON

    def checked(self) -> "Run":
        """The run itself, where it is completed. Raises `Unsuccessful` where it ended otherwise."""
        if self.ended and self.state != "completed":
            raise Unsuccessful(f"The run {self.id}", self.state, self.error_code, self.error)
        return self


class Result(Model):
    """An item that has succeeded."""

    position: int
    custom_id: str | None = None
    metadata: Json = Field(default_factory=dict)
    vector: list[float] | None = None
    answer: Json | None = None

    @property
    def text(self) -> str | None:
        """The text of the answer, where it is one."""
        return None if self.answer is None else self.answer.get("text")


class Failure(Model):
    """An item that has failed, and why."""

    position: int
    custom_id: str | None = None
    code: str
    error: str
    detail: str | None = None
    """What the provider said."""
    metadata: Json = Field(default_factory=dict)


class Download(Model):
    """A file with the results or failures of a run."""

    path: Path
    is_complete: bool
    """Whether the run was done, so that no more will come."""
    next_after: int | None = None
    """While the run goes on: give it as `after` to get only what is not in this file."""


class RunCheck(Model):
    """What a run would do and cost. Nothing was paid, and nothing is kept of it."""

    provider: str
    model: str
    items: int
    bad: int
    """Items that can't be asked for."""
    faults: tuple[Json, ...] = ()
    """The first of these."""
    duplicates: int = 0
    to_pay: int
    """Different contents that were not paid for yet."""
    reused: int
    tokens: int
    """Expected, input and output together."""
    cost_usd: Decimal | None = None
    """Expected; None if no price is known."""
    max_cost_usd: Decimal | None = None
    seconds: float | None = None
    """At the known limits; None if none is known."""
    is_over_limit: bool = False
    """Whether it will probably reach its limit before it is done."""
