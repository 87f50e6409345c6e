"""What a caller says of a job: the keywords of an enqueue call, and the entries of a list."""

from collections.abc import Mapping, Sequence
from typing import Any, Required, TypedDict
from uuid import UUID

from pydantic import BaseModel, JsonValue

from promptstack.services.access.key_terms import KeyLimits
from promptstack.services.llm.packing import EmbeddingInput
from promptstack.services.llm.parameters import GenerationKeywords
from promptstack.services.llm.requests import Fallback
from promptstack.services.validation.webhook_urls import Webhook


class JobKeywords(TypedDict, total=False):
    """What can be said of every job."""

    provider: str | None
    model: str | None
    bulk: bool
    """Interactive jobs go before bulk ones."""
    user_id: UUID | None
    api_key_id: UUID | None
    """The key it comes with, whose budget pays."""
    key_limits: KeyLimits | None
    """Whom the key may ask."""
    idempotency_key: str | None
    """The same key with the same request is the job that is there."""
    max_retries: int | None
    expires_in: float | None
    tags: Sequence[str]
    """Words of yours, to find it by."""
    webhook: Webhook | str | None
    """The address that its end is told to, signed with its user's own secret."""


class GenerationOptions(GenerationKeywords, JobKeywords, total=False):
    """What can be said of a generation beside its prompt."""

    messages: Sequence[BaseModel | Mapping[str, Any]]
    """Ours or as OpenAI's clients write them, the answers of its SDK included."""
    fallbacks: Sequence[Fallback | Mapping[str, Any]]
    """Are asked where the provider can't answer."""
    stream: bool
    """Show its text as it is produced, to `jobs.stream` and over HTTP."""


class GenerationEntry(GenerationOptions, total=False):
    """A generation: a `prompt` or `messages`, and how to generate."""

    prompt: str | None


class EmbeddingOptions(JobKeywords, total=False):
    """What can be said of the embedding of a document beside its text and source."""

    chunk_tokens: int | None
    collection: UUID | str | None
    """Where it is kept: a name or an id. Unless said, in the user's `default` collection."""
    metadata: Mapping[str, JsonValue] | None
    """What is said of it, for filters. None leaves what is there as it is."""


class EmbeddingEntry(EmbeddingOptions, total=False):
    """The embedding of a document."""

    text: Required[str]
    source: Required[str]


class VectorsEntry(JobKeywords, total=False):
    """The vectors of some inputs."""

    inputs: Required[Sequence[EmbeddingInput]]
    dimensions: int | None
    """The size of the vectors; None is the model's own."""


def is_embedding(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of a list is an embedding; it has `text` and `source` then."""
    return "text" in entry or "source" in entry
