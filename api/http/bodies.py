"""Fields that the bodies of jobs and runs share."""

from typing import Annotated, Any

from fastapi import Header
from pydantic import BaseModel, ConfigDict, Field, model_validator

from promptstack.services.collections.lookup import MAX_NAME_CHARACTERS
from promptstack.services.validation.bounds import Lifetime, Line, Name, Retries, Tags, Text
from promptstack.services.validation.webhook_urls import Webhook

MAX_FIELDS = 100
"""More than any request has. Validation reports each unknown field: a body with a million of them
would hold up all requests for seconds."""

Given = Annotated[Name, Field(min_length=1)]
"""A name that is not empty."""

IdempotencyKey = Annotated[
    Given | None,
    Header(
        alias="Idempotency-Key",
        description="Of your choice. Sent again with the same request, it returns what that has "
        "made; with another request, it is refused.",
    ),
]

NotBlank = Annotated[
    Text, Field(json_schema_extra={"pattern": r"^[^\u0000]*[^\s\u0000][^\u0000]*$"})
]
"""Text that is not blank. The schema says so; the services check it."""


InCollection = Annotated[
    Annotated[Line, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)] | None,
    Field(
        description="Where it is kept and searched: a collection's name or id. Unset: `default`."
    ),
]


def refuse_many_fields(value: Any) -> Any:
    """Raise `ValueError` for an object with more fields than any request has."""
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        raise ValueError(f"has more than {MAX_FIELDS} fields")
    return value


class Body(BaseModel):
    """Fields of every job and run."""

    model_config = ConfigDict(extra="forbid")

    provider: Given | None = Field(None, description="Unset: the default provider.")
    model: Given | None = Field(None, description="Unset: the provider's default model.")
    max_retries: Retries | None = Field(
        None, description="Failed attempts after which there is no further one."
    )
    expires_in: Lifetime | None = Field(
        None, description="Seconds after which it ends as expired where it is not done."
    )
    tags: Tags = Field((), description="Words of yours, to find it by.")
    webhook: Webhook | None = Field(
        None, description="Where its end is told to, beside your endpoints."
    )

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        return refuse_many_fields(value)


class JobBody(Body):
    """Fields of every job."""

    bulk: bool = Field(False, description="Let interactive jobs go first; for batches.")

    def keywords(self) -> dict[str, Any]:
        """The keywords of its enqueue call: what was said."""
        # Defaults are the call's own, and most bodies say little.
        return {name: getattr(self, name) for name in self.model_fields_set}
