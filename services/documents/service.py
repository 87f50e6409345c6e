"""Documents as their callers use them: put, look at, delete."""

from collections.abc import Mapping
from datetime import datetime
from typing import Unpack
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from promptstack.repositories.content.documents import DocumentRow
from promptstack.repositories.pages import FIRST_PAGE, Page, PageQuery
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.log import AuditLog
from promptstack.services.collections.lookup import find_collection, place_of
from promptstack.services.errors import NotFound
from promptstack.services.jobs.entries import EmbeddingOptions
from promptstack.services.jobs.service import JobService
from promptstack.services.jobs.views import JobView
from promptstack.services.text import check_storable, check_storable_json
from promptstack.services.validation.ids import find_id, read_id


class DocumentView(BaseModel):
    """A document without its text."""

    model_config = ConfigDict(from_attributes=True, frozen=True)

    id: UUID
    collection_id: UUID
    source: str
    metadata: dict[str, JsonValue]
    bytes: int
    """Of its text, in UTF-8."""
    chunks: int
    """Into which it was cut; 0 before it is embedded."""
    created_at: datetime
    updated_at: datetime


class DocumentDetail(DocumentView):
    """A document with its text."""

    text: str


class PutDocument(BaseModel):
    """A document that was stored, and the job that embeds it."""

    document: DocumentView
    job: JobView | None = Field(description="What embeds it; null where that was not asked for.")


class DocumentService:
    """Stores documents and answers for them."""

    def __init__(self, ledger: Ledger, jobs: JobService) -> None:
        self._ledger = ledger
        self._jobs = jobs

    def put(
        self,
        text: str,
        *,
        source: str,
        embed: bool = True,
        **options: Unpack[EmbeddingOptions],
    ) -> PutDocument:
        """Store a document, or a new text for its source, and have it embedded.

        `options` are those of `enqueue_embedding`, and so are the errors. Without `embed`, search
        finds it once it was embedded.
        """
        with self._ledger.transaction() as unit:
            job: JobView | None = None
            if embed:
                job = self._jobs.enqueue_embedding(
                    text, source=source, session=unit.session, **options
                )
            else:
                self._jobs.store_document(text, source=source, session=unit.session, **options)
            place = place_of(unit, options.get("collection"), options.get("user_id"))
            row = unit.documents.by_source(place, source)
            if row is None:
                # An idempotency key has found the job of a document that was deleted since.
                raise NotFound(f"The document {source!a:.200} was deleted.")
            return PutDocument(document=DocumentView.model_validate(row), job=job)

    def get(self, document_id: UUID | str, *, owner: UUID | None = None) -> DocumentDetail:
        """Return a document with its text. Raises `NotFound`, also for another owner's."""
        with self._ledger.transaction() as unit:
            row = _find(unit, document_id, owner)
            view = DocumentView.model_validate(row)
            return DocumentDetail(text=unit.documents.text_of(row.id), **view.model_dump())

    def find(self, given: str) -> UUID:
        """The id of the one document whose id begins so. Raises as `find_id`."""
        with self._ledger.transaction() as unit:
            return find_id(unit.documents, "document", given)

    def get_page(
        self,
        collection: UUID | str,
        asked: PageQuery = FIRST_PAGE,
        *,
        owner: UUID | None = None,
        source: str | None = None,
        where: Mapping[str, JsonValue] | None = None,
    ) -> Page[DocumentView]:
        """Return a page of a collection's documents, newest first.

        They may be filtered by their source, and by metadata that they must have. Raises
        `NotFound`.
        """
        check_storable(source or "", "The source")
        check_storable_json(dict(where or {}), "The condition")
        with self._ledger.transaction() as unit:
            place = find_collection(unit, collection, owner).id
            page = unit.documents.page_of(place, asked, source=source, where=where or {})
            return page.of(DocumentView.model_validate)

    def delete(
        self,
        document_id: UUID | str,
        *,
        owner: UUID | None = None,
        actor: Actor | None = None,
    ) -> None:
        """Delete a document. Vectors that nobody else uses follow soon after.

        A job that embeds it fails. Where it is not the `actor`'s own, this is audited. Raises
        `NotFound`.
        """
        with self._ledger.transaction() as unit:
            row = _find(unit, document_id, owner)
            unit.documents.delete_with_chunks([row.id])
            if actor is not None and row.user_id != actor.user_id:
                AuditLog.record(
                    unit,
                    actor=actor,
                    action=Action.DOCUMENT_DELETED,
                    object=ObjectKind.DOCUMENT.of(row.id),
                    detail={"owner_id": row.user_id},
                )


def _find(unit: UnitOfWork, document_id: UUID | str, owner: UUID | None) -> DocumentRow:
    row = unit.documents.row(read_id(document_id, "document"))
    if row is None or (owner is not None and row.user_id != owner):
        raise NotFound(f"There is no document {document_id}.")
    return row
