"""A job before it is stored: what it was told, and what holds where it was told nothing."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from config.names import Queue
from repositories.models import JobKind
from services.errors import InvalidInput
from services.text import check_storable

MAX_KEY_CHARACTERS = 200

QUEUES = {
    (JobKind.GENERATION, False): Queue.GENERATION,
    (JobKind.GENERATION, True): Queue.GENERATION_BULK,
    (JobKind.EMBEDDING, False): Queue.EMBEDDINGS,
    (JobKind.EMBEDDING, True): Queue.EMBEDDINGS_BULK,
}


@dataclass(frozen=True)
class JobDefaults:
    """What holds for a job that says nothing else."""

    generation_provider: str
    embedding_provider: str
    max_retries: int
    expires_seconds: float
    max_text_bytes: int


@dataclass(frozen=True)
class JobOptions:
    """What every kind of job can be told at enqueue."""

    user_id: UUID | None = None
    idempotency_key: str | None = None
    max_retries: int | None = None
    expires_in: float | None = None
    """Seconds until the job, if it is not done, ends as expired."""
    is_bulk: bool = False
    """Whether interactive jobs go before it: for batches that nobody waits for."""


@dataclass(frozen=True)
class NewJob:
    """A request that was checked and may be stored."""

    kind: JobKind
    provider: str
    model: str
    body: dict[str, Any]
    """What the caller asked for; the same body is the same request."""
    options: JobOptions

    @property
    def queue(self) -> Queue:
        """Where its message goes."""
        return QUEUES[self.kind, self.options.is_bulk]

    @property
    def request_hash(self) -> str:
        """Tells whether two requests are the same."""
        canonical = json.dumps([self.kind, self.provider, self.model, self.body], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def check_options(options: JobOptions) -> None:
    """Raise `InvalidInput` for what no job can be told."""
    key = options.idempotency_key
    if key is not None:
        check_storable(key, "The idempotency key")
        if not 0 < len(key) <= MAX_KEY_CHARACTERS:
            raise InvalidInput(
                f"The idempotency key must have 1 to {MAX_KEY_CHARACTERS} characters."
            )
    if options.max_retries is not None and not 0 <= options.max_retries <= 100:
        raise InvalidInput("max_retries must be between 0 and 100.")
    if options.expires_in is not None and not 0 < options.expires_in <= 366 * 86_400:
        raise InvalidInput("expires_in must be more than 0 seconds and at most a year.")
