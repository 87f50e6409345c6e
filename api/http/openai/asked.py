"""What a request to OpenAI asks for, as the keywords of an enqueue call."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from promptstack.api.http.bodies import Given, refuse_many_fields
from promptstack.services.access.caller import Caller
from promptstack.services.errors import InvalidInput
from promptstack.services.llm.answers import Capability
from promptstack.services.llm.request_bodies import NotHonoured, asked_of
from promptstack.services.validation.bounds import MAX_TAGS, Line
from promptstack.tasks.composition import PromptStack

MOST_TAG_CHARACTERS = 64
FLEX = "flex"
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[Line, Field(max_length=512)]],
    Field(max_length=16),
]
Tier = Literal["auto", "default", "flex", "priority", "scale", "fast"]


class DirectBody(BaseModel):
    """What direct calls have in common; all other fields are kept as they were sent."""

    model_config = ConfigDict(extra="allow")

    model: Given
    stream: StrictBool | None = None
    service_tier: Tier | None = None
    store: StrictBool | None = None
    metadata: Metadata | None = None
    user: Line | None = None

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        return refuse_many_fields(value)

    @property
    def is_bulk(self) -> bool:
        """Whether interactive jobs go first."""
        return self.service_tier == FLEX

    @property
    def tier(self) -> str:
        """As answers say it."""
        return FLEX if self.is_bulk else "default"

    def tags(self) -> list[str]:
        """Words to find its job by: what the client says of it, as far as that fits."""
        said = {**({"user": self.user} if self.user else {}), **(self.metadata or {})}
        found = [f"{name}={value}" for name, value in said.items()]
        return [tag for tag in found if len(tag) <= MOST_TAG_CHARACTERS and tag.isprintable()][
            :MAX_TAGS
        ]


OURS = frozenset({"stream", "stream_options", "service_tier", "store", "metadata", "model"})
"""Fields that are not the provider's."""


def generation_of(
    stack: PromptStack,
    caller: Caller,
    endpoint: str,
    body: DirectBody,
    idempotency_key: str | None,
) -> dict[str, Any]:
    """The keywords of the generation that a body asks for. Raises `InvalidInput`."""
    meant = stack.model_names.resolve(
        body.model,
        Capability.GENERATION,
        key_limits=caller.key_limits,
        same_for=idempotency_key,
    )
    fields = {name: value for name, value in body if name not in OURS}
    try:
        asked = asked_of(endpoint, fields)
    except NotHonoured as refused:
        raise InvalidInput(
            f"The request {refused}.", pointer=f"/{refused.field}" if refused.field else ""
        ) from refused
    how = dict(asked.how)
    given = how.pop("options", {})
    options = stack.factory.openai_options(meant.provider, given)
    return {
        **asked.record,
        **how,
        **({"options": options} if options else {}),
        "provider": meant.provider,
        "model": meant.model,
        "fallbacks": stack.factory.fallbacks_for(meant.fallbacks, given),
        "stream": bool(body.stream),
        "bulk": body.is_bulk,
        "tags": body.tags(),
        "idempotency_key": idempotency_key,
        **caller.as_owner,
    }
