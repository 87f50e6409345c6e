"""A run before it is stored: what its caller says, and what holds where the caller says nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypedDict
from uuid import UUID

from pydantic import BaseModel, ConfigDict, JsonValue

from promptstack.repositories.run_models import RunKind
from promptstack.services.access.key_terms import KeyLimits
from promptstack.services.llm.parameters import GenerationKeywords
from promptstack.services.llm.request_bounds import RequestBounds
from promptstack.services.runs.intake.ingest import Check, Hasher, Intake
from promptstack.services.sources.reading import Reading, SourceBounds
from promptstack.services.validation.bounds import (
    Dollars,
    InFlight,
    Lifetime,
    Name,
    Retries,
    Tags,
)
from promptstack.services.validation.webhook_urls import GivenWebhook, Webhook, WebhookRules


@dataclass(frozen=True)
class NewRun:
    """What a run asks of all its items, or of one that has parameters of its own."""

    kind: RunKind
    provider: str
    model: str
    parameters: dict[str, Any]
    """Of generations: `GenerationParameters`. Of embeddings: their size and their written form."""
    hash_of: Hasher
    check: Check


@dataclass(frozen=True)
class RunDefaults:
    """What holds for a run that says nothing else."""

    generation_provider: str
    embedding_provider: str
    max_retries: int
    expires_seconds: float
    in_flight: int
    max_text_bytes: int
    block_bytes: int
    request_bounds: RequestBounds = field(default_factory=RequestBounds)
    source_bounds: SourceBounds = field(default_factory=SourceBounds)
    webhook_rules: WebhookRules = field(default_factory=WebhookRules)


class RunOptions(BaseModel):
    """What callers may set for every kind of run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = ""
    tags: Tags = ()
    user_id: UUID | None = None
    api_key_id: UUID | None = None
    key_limits: KeyLimits | None = None
    """Whom the key that it came with may ask."""
    collection: UUID | str | None = None
    """Where its items are searched: a name or an id. Unless said, the user's default one."""
    in_flight: InFlight | None = None
    """The rate limiter may let fewer leave."""
    max_cost_usd: Dollars | None = None
    max_retries: Retries | None = None
    expires_in: Lifetime | None = None
    webhook: GivenWebhook | None = None
    """The address that its end is told to, beside its user's endpoints."""
    reading: Reading = Reading()
    output_url: str | None = None
    """Where its output is written in object storage when it has ended; checked by the caller."""
    total_bytes: int | None = None
    """Of all inputs, a template filled in. None: as many as the source has."""
    total_items: int | None = None
    """Most inputs. None: as many as the source has."""
    unpacked_bytes: int | None = None
    """Of a file that may be packed. None: as many as it has."""
    read_seconds: float | None = None
    """Time in which the source is read. None: as long as it takes."""
    on_progress: Callable[[Intake], None] = lambda _: None
    """Called with how much has been read."""
    check_request: Callable[[Mapping[str, Any]], None] = lambda _: None
    """Raises `BadRecord` for a record that is not as its caller wants it, before it is read."""
    run_id: UUID | None = None
    """Of the new run; None makes one."""


class RunKeywords(TypedDict, total=False):
    """`RunOptions` as keywords of a Python call, with who is asked."""

    provider: str | None
    model: str | None
    name: str
    tags: Sequence[str]
    user_id: UUID | None
    api_key_id: UUID | None
    key_limits: KeyLimits | None
    collection: UUID | str | None
    in_flight: int | None
    max_cost_usd: Decimal | float | str | None
    max_retries: int | None
    expires_in: float | None
    webhook: Webhook | str | None
    reading: Reading
    output_url: str | None
    total_bytes: int | None
    total_items: int | None
    unpacked_bytes: int | None
    read_seconds: float | None
    on_progress: Callable[[Intake], None]
    check_request: Callable[[Mapping[str, Any]], None]
    run_id: UUID | None


class GenerationRunKeywords(GenerationKeywords, RunKeywords, total=False):
    """What a run of generations takes as keywords of a Python call."""

    reuse: bool
    """Whether answers of earlier runs are taken. They are, unless it says no."""
    provider_options: Mapping[str, JsonValue] | None
    """Another name of `options`."""
