"""What all requests that enqueue a job have in common."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Header
from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.llm.requests import Text

MAX_FIELDS = 100
"""No request has as many. Validation says something about each unknown field, and a body of a
million of them would hold up everybody for seconds."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Up to 200 characters of your choice. Sent again with the same request, it "
        "returns the job that is there; with another request, it is refused.",
    ),
]


def refuse_many_fields(value: Any) -> Any:
    """Raise `ValueError` for an object with more fields than any request has."""
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        raise ValueError(f"has more than {MAX_FIELDS} fields")
    return value


class JobBody(BaseModel):
    """What every job can be told. The enqueue API checks the values."""

    model_config = ConfigDict(extra="forbid")

    provider: Text | None = Field(None, description="Unset: the default provider.")
    model: Text | None = Field(None, description="Unset: the provider's default model.")
    max_retries: int | None = Field(
        None, description="Failed attempts after which the job gets no further one: 0 to 100."
    )
    expires_in: float | None = Field(
        None, description="Seconds after which the job, if it is not done, ends as expired."
    )

    bulk: bool = Field(False, description="Let interactive jobs go first; for batches.")

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        return refuse_many_fields(value)


def in_utc(time: datetime | None) -> datetime | None:
    """Take a time without a zone for one in UTC."""
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time
