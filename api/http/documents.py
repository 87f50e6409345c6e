"""Documents: put, list, show and delete them."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response, status
from pydantic import Field

from promptstack.api.http.accepted import point_to
from promptstack.api.http.auth import CurrentCaller, Owner, Stack
from promptstack.api.http.bodies import IdempotencyKey, JobBody, NotBlank
from promptstack.api.http.collections import NamedCollection
from promptstack.api.http.paging import PageEnds, PageParameters, ends_of
from promptstack.api.http.route import ProtectedRoute
from promptstack.services.audit.actor import Actor
from promptstack.services.collections.metadata import read_condition
from promptstack.services.documents.service import DocumentDetail, DocumentView, PutDocument
from promptstack.services.validation.bounds import ChunkTokens, JsonObject, Line, Text

router = APIRouter(tags=["documents"], route_class=ProtectedRoute)

MAX_CONDITION_CHARACTERS = 10_000
Source = Annotated[Line, Field(min_length=1, max_length=2_000)]


class DocumentBody(JobBody):
    """A document, and how to embed it."""

    text: NotBlank = Field(description="It is cut into chunks.")
    source: Source = Field(
        description="Names the document: a path, an address, an id of yours. The same source again "
        "replaces its text.",
    )
    metadata: JsonObject | None = Field(
        None, description="For filters of a search. Unset: what was said before."
    )
    embed: bool = Field(True, description="Search finds it once it was embedded.")
    chunk_tokens: ChunkTokens | None = Field(
        None, description="The longest chunk, in tokens; default: CHUNK_TOKENS of the settings."
    )


class DocumentQuery(PageParameters[UUID]):
    """Which documents to list."""

    source: Source | None = Field(None, description="The one of this source.")
    where: Annotated[Text, Field(max_length=MAX_CONDITION_CHARACTERS)] | None = Field(
        None, description='Metadata that they must have, as JSON: `{"lang": "fr"}`.'
    )


class DocumentPage(PageEnds[UUID]):
    """One page of documents, newest first."""

    documents: list[DocumentView]


@router.get("/collections/{collection_id}/documents")
def list_documents(
    stack: Stack, named: NamedCollection, query: Annotated[DocumentQuery, Query()]
) -> DocumentPage:
    """Show the documents of a collection, newest first, without their texts."""
    page = stack.documents.get_page(
        named.given,
        query.page,
        owner=named.owner,
        source=query.source,
        where=read_condition(query.where),
    )
    return DocumentPage(documents=page.rows, **ends_of(page))


@router.put("/collections/{collection_id}/documents", status_code=status.HTTP_202_ACCEPTED)
def put_document(
    body: DocumentBody,
    *,
    stack: Stack,
    caller: CurrentCaller,
    named: NamedCollection,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> PutDocument:
    """Store a document in a collection of yours, or a new text for its source, and embed it.

    Chunks that were embedded before are not paid for again.
    """
    put = stack.documents.put(
        **body.keywords(),
        **caller.as_owner,
        collection=named.given,
        idempotency_key=idempotency_key,
    )
    path = f"/documents/{put.document.id}" if put.job is None else f"/jobs/{put.job.id}"
    point_to(response, stack, path)
    return put


@router.get("/documents/{document_id}")
def get_document(document_id: UUID, stack: Stack, owner: Owner) -> DocumentDetail:
    """Show a document with its text."""
    return stack.documents.get(document_id, owner=owner)


@router.delete("/documents/{document_id}", status_code=status.HTTP_204_NO_CONTENT)
def delete_document(
    document_id: UUID, stack: Stack, owner: Owner, caller: CurrentCaller
) -> Response:
    """Delete a document; vectors that nobody else uses follow soon after."""
    stack.documents.delete(document_id, owner=owner, actor=Actor.of(caller))
    return Response(status_code=status.HTTP_204_NO_CONTENT)
