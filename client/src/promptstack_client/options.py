"""Keywords of methods that take many: what may be said of a job, a generation, a run.

Each is a field of the API's body; docs/providers.md and the server's /docs say more of each.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Required, TypedDict

from promptstack_client.models.base import Id

Time = datetime | str
Dollars = Decimal | float | str
JsonObject = Mapping[str, Any]


class JobFields(TypedDict, total=False):
    """What may be said of every job."""

    provider: str | None
    model: str | None
    max_retries: int | None
    """Failed attempts after which there is no further one."""
    expires_in: float | None
    """Seconds after which it ends as expired where it is not done."""
    bulk: bool
    """Let interactive jobs go first."""
    tags: Sequence[str]
    webhook: JsonObject | None
    """Where its end is told: `{"url": ...}`, signed with your own secret."""


class KeyedFields(JobFields, total=False):
    """What may be said of a job that is to be made once."""

    idempotency_key: str | None
    """Sent again with the same request, it returns the job that is there. Unset: one of its own."""


class JobOptions(KeyedFields, total=False):
    """What may be said of a job that is enqueued by a request of its own."""

    wait: float | None
    """Seconds, up to 60, that the answer is held back for: the job may have ended by then."""


class Parameters(TypedDict, total=False):
    """How a model is to answer."""

    system: str | None
    temperature: float | None
    max_tokens: int | None
    stop: Sequence[str]
    seed: int | None
    json_schema: JsonObject | None
    """The answer is an instance of it."""
    tools: Sequence[JsonObject]
    tool_choice: str | None
    options: JsonObject
    """Parameters that only this provider knows."""


class GenerationFields(JobFields, Parameters, total=False):
    """What may be said of a generation, beside its prompt."""

    fallbacks: Sequence[JsonObject]
    """Who is asked where the provider can't answer: each has a `provider`, maybe a `model`."""
    stream: bool
    """Show its text as it is produced, to who watches it; `stream` of the client says so itself."""


class GenerationOptions(GenerationFields, JobOptions, total=False):
    """What may be said of a generation that is enqueued by a request of its own."""


class EmbeddingFields(JobFields, total=False):
    """What may be said of the embedding of a document, beside its text."""

    chunk_tokens: int | None
    collection: str | None
    """Where it is kept and searched: a name or an id."""
    metadata: JsonObject | None


class DocumentOptions(KeyedFields, total=False):
    """What may be said of a document that is put into a collection, and of its embedding."""

    chunk_tokens: int | None
    metadata: JsonObject | None
    """For filters of a search. Unset: what was said before."""
    embed: bool
    """Search finds it once it was embedded; it is, unless you say False."""


class EmbeddingOptions(EmbeddingFields, JobOptions, total=False):
    """What may be said of an embedding that is enqueued by a request of its own."""


class GenerationEntry(GenerationFields, KeyedFields, total=False):
    """A generation in a list: with a prompt, or with messages."""

    prompt: str
    messages: Sequence[JsonObject]


class EmbeddingEntry(EmbeddingFields, KeyedFields, total=False):
    """The embedding of a document in a list."""

    text: Required[str]
    source: str | None


class PageOptions(TypedDict, total=False):
    """Which page of a list."""

    limit: int | None
    """The most on a page; a loop over the list asks for all pages."""
    after: Id | None
    before: Id | None
    count: bool | None


class ListOptions(PageOptions, total=False):
    """Which page of a list, and whose."""

    owner: str | None
    """Whose: `all`, or a user's e-mail address; for administrators."""


class JobFilter(TypedDict, total=False):
    """Which jobs."""

    state: str | None
    kind: str | None
    provider: str | None
    model: str | None
    error: str | None
    """The code of the error."""
    tag: str | None
    since: Time | None
    until: Time | None


class OwnedJobFilter(JobFilter, total=False):
    """Which jobs, and whose."""

    owner: str | None
    """`all`, or a user's e-mail address; for administrators."""


class RunListOptions(ListOptions, total=False):
    """Which runs to list."""

    state: str | None
    kind: str | None
    tag: str | None
    since: Time | None
    until: Time | None


class JobListOptions(ListOptions, JobFilter, total=False):
    """Which jobs to list."""


class RunFields(TypedDict, total=False):
    """What may be said of every run."""

    provider: str | None
    model: str | None
    max_retries: int | None
    expires_in: float | None
    """Seconds after which it ends as expired where it is not done."""
    name: str
    """For you to find it again."""
    tags: Sequence[str]
    skip_bad: bool
    """Go on without items that can't be asked for; else the run is refused."""
    in_flight: int | None
    """Calls at once in each worker."""
    max_cost_usd: Dollars | None
    """The run ends before it could cost more."""
    collection: str | None
    webhook: JsonObject | None
    """Where its end is told: `{"url": ...}`, signed with your own secret."""
    source_url: str | None
    """A file in object storage in place of items: `s3://bucket/name.jsonl`."""
    output_url: str | None
    """Where results are written when the run has ended; the suffix tells the format."""
    format: str | None
    """Of a file, where its name doesn't tell: `jsonl`, `csv`, `parquet` or `lines`."""
    text_column: str | None
    """Field of the text. Unset: `text`, else `prompt`."""
    id_column: str | None
    """Field of the id. Unset: `custom_id`, else `id`."""
    columns: Sequence[str] | None
    """Fields to keep as metadata. Unset: all others."""
    idempotency_key: str | None
    """Sent again with the same request, it returns the run that is there. Unset: one of its own."""
    wait: float | None
    """Seconds, up to 60, that the answer is held back for: the run may have ended by then."""


class EmbeddingRunOptions(RunFields, total=False):
    """What may be said of a run that embeds texts."""

    chunk_tokens: int | None
    """Cut each text into chunks of at most so many tokens."""


class GenerationRunOptions(RunFields, Parameters, total=False):
    """What may be said of a run that answers prompts."""

    template: str | None
    """What a prompt is made of: `Summarise: {text}`, with fields of the item."""
    reuse: bool
    """Take answers that earlier runs have paid for; they are, unless you say False."""


class FileOptions(TypedDict, total=False):
    """What a file with failures of a run is to have."""

    after: int | None
    """Only items behind this position."""
    settled: bool | None
    """While the run goes on: only up to the first item that is still open, so that the next file
    can go on at `next_after` and no item is in both."""


class ResultFileOptions(FileOptions, total=False):
    """What a file with results of a run is to have."""

    with_input: bool | None
    """Also what was asked."""
    with_vector: bool | None
    """Unless you say False."""


class DeliveryOptions(PageOptions, total=False):
    """Which deliveries of events to list."""

    state: str | None
    object_id: Id | None
    """The job or run that has ended."""


class DeliveryListOptions(DeliveryOptions, total=False):
    """Which deliveries of all addresses to list."""

    owner: str | None
