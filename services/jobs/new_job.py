"""A job before it is stored: its options, and their defaults."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from promptstack.config.names import Queue
from promptstack.repositories.content.documents import NewDocument
from promptstack.repositories.jobs.records import Accepted
from promptstack.repositories.models import JobKind, new_id
from promptstack.services.access.key_terms import KeyLimits
from promptstack.services.jobs.publishing import JobMessage
from promptstack.services.jobs.views import JobView
from promptstack.services.llm.request_bounds import RequestBounds
from promptstack.services.validation.bounds import ChunkTokens, Lifetime, Name, Retries, Tags
from promptstack.services.validation.webhook_urls import GivenWebhook, WebhookRules

QUEUES = {
    (JobKind.GENERATION, False): Queue.GENERATION,
    (JobKind.GENERATION, True): Queue.GENERATION_BULK,
    (JobKind.EMBEDDING, False): Queue.EMBEDDINGS,
    (JobKind.EMBEDDING, True): Queue.EMBEDDINGS_BULK,
    (JobKind.VECTORS, False): Queue.EMBEDDINGS,
    (JobKind.VECTORS, True): Queue.EMBEDDINGS_BULK,
}

_CANONICAL = json.JSONEncoder(sort_keys=True).encode
written_json = json.JSONEncoder(ensure_ascii=False).encode
IdempotencyKey = Annotated[Name, Field(min_length=1)]
CHECKED_KEY: TypeAdapter[str | None] = TypeAdapter(IdempotencyKey | None)


def canonical_json(kind: JobKind, provider: str, model: str, body: dict[str, Any]) -> str:
    """What of a request makes it the same as another.

    It must stay as it is: hashes of it are compared with those of earlier versions.
    """
    return _CANONICAL([kind, provider, model, body])


@dataclass(frozen=True)
class JobDefaults:
    """The values of options that a job leaves out, and the bounds of its request."""

    generation_provider: str
    embedding_provider: str
    max_retries: int
    expires_seconds: float
    max_text_bytes: int
    max_metadata_bytes: int = 16_384
    request_bounds: RequestBounds = field(default_factory=RequestBounds)
    webhook_rules: WebhookRules = field(default_factory=WebhookRules)


class JobOptions(BaseModel):
    """Options of every kind of job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user_id: UUID | None = None
    api_key_id: UUID | None = None
    """The key it comes with, whose budget pays."""
    key_limits: KeyLimits | None = None
    """Whom it may ask."""
    idempotency_key: IdempotencyKey | None = None
    max_retries: Retries | None = None
    expires_in: Lifetime | None = None
    webhook: GivenWebhook | None = None
    """The address that its end is told to, beside its user's endpoints."""
    is_bulk: bool = False
    """Whether interactive jobs go first."""
    chunk_tokens: ChunkTokens | None = None
    """Of a document: the longest chunk."""
    tags: Tags = ()


@dataclass(frozen=True)
class NewJob:
    """A job whose request was checked."""

    kind: JobKind
    provider: str
    model: str
    body: dict[str, Any]
    """The caller's request."""
    written: str
    """The same as JSON."""
    options: JobOptions
    document: NewDocument | None = None
    """Of an embedding: what is embedded."""
    place: str = ""
    """What it is called in errors, where it is one of many; it ends so that a sentence follows."""
    id: UUID = field(default_factory=new_id)
    """Chosen here: where nobody knows whether a job was stored, it can be stored again."""
    request_hash: str = ""
    """Two requests with the same hash are the same. It is made here, before any transaction, as it
    takes a while for a long request."""

    def __post_init__(self) -> None:
        if not self.request_hash:
            canonical = canonical_json(self.kind, self.provider, self.model, self.body)
            digest = hashlib.sha256(canonical.encode()).hexdigest()
            object.__setattr__(self, "request_hash", digest)

    @property
    def queue(self) -> Queue:
        """The queue of its message."""
        return QUEUES[self.kind, self.options.is_bulk]

    @property
    def key(self) -> tuple[UUID | None, str] | None:
        """Its idempotency key, which belongs to its user."""
        key = self.options.idempotency_key
        return None if key is None else (self.options.user_id, key)

    def view(self, accepted: Accepted, max_retries: int) -> JobView:
        """The job as its caller sees it once it was added."""
        return JobView.queued(
            id=self.id,
            kind=self.kind,
            provider=self.provider,
            model=self.model,
            max_retries=max_retries,
            tags=list(self.options.tags),
            created_at=accepted.created_at,
            expires_at=accepted.expires_at,
        )


def messages_of(added: Iterable[tuple[NewJob, Accepted]]) -> list[JobMessage]:
    """The messages of jobs that were added and don't wait for their users' turns."""
    return [
        JobMessage(job.id, job.kind, job.queue, job.provider, job.model, 0, accepted.created_at)
        for job, accepted in added
        if not job.options.is_bulk
    ]


def bulk_queues_of(added: Iterable[tuple[NewJob, Accepted]]) -> set[Queue]:
    """The queues of jobs that were added and wait for their users' turns."""
    return {job.queue for job, _ in added if job.options.is_bulk}
