"""Search: passages of documents and items of runs, by their meaning and their words."""

from functools import partial
from typing import Annotated, Any, Self
from uuid import UUID

from anyio import CapacityLimiter
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.bodies import Given, NotBlank, refuse_many_fields
from promptstack.api.http.collections import CollectionName
from promptstack.api.http.later import AnswerLater, SlotsOfUsers
from promptstack.api.http.route import ProtectedRoute
from promptstack.repositories.content.passages import Match
from promptstack.services.access.caller import Caller
from promptstack.services.documents.search import (
    MAX_COLLECTIONS,
    MAX_QUERY_CHARACTERS,
    MAX_RESULTS,
)
from promptstack.services.validation.bounds import JsonObject, Line
from promptstack.tasks.composition import PromptStack

router = APIRouter(tags=["search"], route_class=ProtectedRoute)

SEARCHES_AT_ONCE = 8
"""In one process: each holds a thread while the provider is asked. Others wait without one."""
SEARCHES_OF_USER = 2
"""Of these: a user whose provider is slow holds up no other."""
MAX_DIMENSIONS = 16_000
"""As many as PostgreSQL's vectors have."""
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=-3.4e38, lt=3.4e38)]


class SearchSlots:
    """What the searches of one application wait for."""

    def __init__(self) -> None:
        self.all = CapacityLimiter(SEARCHES_AT_ONCE)
        self.of_users = SlotsOfUsers(SEARCHES_OF_USER)


class SearchBody(BaseModel):
    """What to look for, and where."""

    model_config = ConfigDict(extra="forbid")

    query: Annotated[NotBlank, Field(max_length=MAX_QUERY_CHARACTERS)] | None = Field(
        None, description="In plain words. It is embedded by the model of the passages."
    )
    vector: Annotated[list[Number], Field(min_length=1, max_length=MAX_DIMENSIONS)] | None = Field(
        None, description="In place of a query: a vector that this model made."
    )
    collections: (
        Annotated[list[CollectionName], Field(min_length=1, max_length=MAX_COLLECTIONS)] | None
    ) = Field(
        None,
        description='Names or ids. Unset: your collection `default`. `["all"]`: all of yours.',
    )
    run_id: UUID | None = Field(None, description="In place of collections: the items of one run.")
    provider: Given | None = Field(None, description="Unset: the default provider.")
    model: Given | None = Field(None, description="Unset: the provider's default model.")
    limit: int = Field(10, strict=True, ge=1, le=MAX_RESULTS, description="The most matches.")
    source: Annotated[Line, Field(min_length=1, max_length=2_000)] | None = Field(
        None, description="Which a document or item must have."
    )
    where: JsonObject | None = Field(
        None, description="Metadata that a document or item must have."
    )
    hybrid: bool = Field(
        False, description="Let the words of the query count, too, and not its meaning alone."
    )

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        return refuse_many_fields(value)

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        if (self.query is None) == (self.vector is None):
            raise ValueError("send a query or a vector: one of the two")
        if self.hybrid and self.query is None:
            raise ValueError("a hybrid search needs a query: a vector has no words")
        if self.collections is not None and self.run_id is not None:
            raise ValueError("a search is in collections or in a run: name one of the two")
        return self


class MatchView(BaseModel):
    """A passage that was found: of a document, or an item of a run."""

    document_id: UUID | None
    run_id: UUID | None
    collection_id: UUID
    source: str = Field(description="Of an item: `source` of its metadata, else its `custom_id`.")
    position: int = Field(description="Which chunk of the document, or item of the run.")
    start: int = Field(description="Where the passage begins in the document, in characters.")
    text: str
    score: float = Field(
        description="Cosine similarity; of a hybrid search, a sum over the places in two rankings."
    )
    metadata: dict[str, JsonValue]
    highlights: list[tuple[int, int]] = Field(
        description="Where words of the query stand in the text: from which character, and before "
        "which. Of the best 100 matches, in their first 50,000 characters."
    )

    @classmethod
    def of(cls, match: Match) -> "MatchView":
        """The same as JSON."""
        fields = dict(vars(match))
        return cls(metadata=fields.pop("attributes"), **fields)


class SearchResult(BaseModel):
    """What was found, best first."""

    matches: list[MatchView]


@router.post("/search", response_model=SearchResult)
async def search(
    body: SearchBody, request: Request, stack: Stack, caller: CurrentCaller
) -> Response:
    """Find passages by their meaning, and with `hybrid` by their words, too.

    A search stays within your collections, or a run of yours. The call that embeds a query counts
    as any other; the same query again costs nothing for some days.
    """
    slots: SearchSlots = request.app.state.search_slots
    work = partial(_answer, body, stack, caller)
    return AnswerLater(work, slots.of_users.of(caller.user_id), slots.all)


def _answer(body: SearchBody, stack: PromptStack, caller: Caller) -> Response:
    result = SearchResult(matches=list(map(MatchView.of, _find(body, stack, caller))))
    return Response(result.model_dump_json(), media_type="application/json")


def _find(body: SearchBody, stack: PromptStack, caller: Caller) -> list[Match]:
    how = dict(body)
    query, vector, hybrid = (how.pop(name) for name in ("query", "vector", "hybrid"))
    how |= {**caller.as_owner, "tier": caller.tier, "reaches_all": caller.is_admin}
    if vector is None:
        return stack.search.search(query, hybrid=hybrid, **how)
    import numpy as np  # noqa: PLC0415 - it takes 16 MB, and few processes search by vectors

    return stack.search.search_vector(np.array(vector, np.float32), **how)
