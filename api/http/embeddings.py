"""Embeddings: enqueue one document."""

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Response, status
from pydantic import Field

from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.bodies import IdempotencyKey, InCollection, JobBody, NotBlank
from promptstack.api.http.route import ProtectedRoute
from promptstack.api.http.waiting import ENDED_IN_TIME, Wait
from promptstack.services.jobs.views import JobView
from promptstack.services.validation.bounds import ChunkTokens, JsonObject, Line

router = APIRouter(tags=["embeddings"], route_class=ProtectedRoute)


class EmbeddingBody(JobBody):
    """A document, and how to embed it."""

    text: NotBlank = Field(description="The document; it is cut into chunks.")
    source: Annotated[Line, Field(min_length=1, max_length=2_000)] | None = Field(
        None,
        description="Names the document: a path, an address, an id of yours. The same source again "
        "replaces its text. Unset: `sha256:` and the text's hash.",
    )
    chunk_tokens: ChunkTokens | None = Field(
        None, description="The longest chunk, in tokens; default: CHUNK_TOKENS of the settings."
    )

    collection: InCollection = None
    metadata: JsonObject | None = Field(
        None,
        description="What is said of it, for filters of a search. Unset: what was said before.",
    )

    def keywords(self) -> dict[str, Any]:
        """The keywords of its enqueue call, which asks for a source."""
        source = self.source or f"sha256:{hashlib.sha256(self.text.encode()).hexdigest()}"
        return super().keywords() | {"source": source}


@router.post(
    "/embeddings",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=JobView,
    responses={200: {"model": JobView, "description": ENDED_IN_TIME}},
)
def create_embedding(
    body: EmbeddingBody,
    stack: Stack,
    caller: CurrentCaller,
    wait: Wait,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept the embedding of one document; `Location` says where to ask for the job."""
    job = stack.jobs.enqueue_embedding(
        **body.keywords(),
        **caller.as_owner,
        idempotency_key=idempotency_key,
    )
    return wait.for_new_job(job)
