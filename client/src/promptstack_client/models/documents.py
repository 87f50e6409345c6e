"""Collections, their documents, and what a search finds in them."""

from datetime import datetime
from uuid import UUID

from pydantic import Field

from promptstack_client.models.base import HasId, Json, Model
from promptstack_client.models.jobs import Job


class Collection(HasId):
    """Documents and runs that are searched together."""

    name: str
    description: str = ""
    language: str = ""
    """Of its texts, as PostgreSQL's text search calls it."""
    created_at: datetime
    deleted_at: datetime | None = None
    """When it was deleted; it is shown until all of it is gone."""


class CollectionDetail(Collection):
    """A collection, and how much there is in it; counts end at 10,000."""

    documents: int = 0
    runs: int = 0
    unused_contents: int = 0
    """Texts whose vectors nobody uses any more, and which go soon."""


class Document(HasId):
    """A text that was handed in to be embedded."""

    collection_id: UUID
    source: str
    """Its name within its collection."""
    metadata: Json = Field(default_factory=dict)
    bytes: int = 0
    chunks: int = 0
    created_at: datetime
    updated_at: datetime


class DocumentDetail(Document):
    """A document with its text."""

    text: str


class PutDocument(Model):
    """A document that was put, and the job that embeds it."""

    document: Document
    job: Job | None = None
    """None where it is not to be embedded."""


class Match(Model):
    """A passage that a search has found."""

    document_id: UUID | None = None
    run_id: UUID | None = None
    collection_id: UUID
    source: str
    position: int
    """Which chunk of the document, or item of the run."""
    start: int = 0
    """Where the passage begins in the document, in characters."""
    text: str
    score: float
    metadata: Json = Field(default_factory=dict)
    highlights: tuple[tuple[int, int], ...] = ()
    """Where words of the query stand in the text: from which character, and before which."""
