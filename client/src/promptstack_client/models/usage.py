"""What was called and what it cost, as the server shows it."""

from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

from promptstack_client.models.base import Model


class Usage(Model):
    """Provider calls of one group, summed."""

    day: date | None = None
    user: str | None = None
    provider: str | None = None
    model: str | None = None
    calls: int
    failed: int
    items: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_usd: Decimal | None
    unknown_cost: int
    """Calls whose cost nobody knows."""
    mean_latency_seconds: float | None = None
    p95_latency_seconds: float | None = None
    limiter_wait_seconds: float = 0.0


class Attempt(Model):
    """One call of a provider."""

    number: int
    """The attempt of its job."""
    call: int
    state: str
    billing: str
    provider: str
    model: str
    items: int
    expected_tokens: int | None = None
    expected_cost_usd: Decimal | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cost_usd: Decimal | None = None
    limiter_wait_seconds: float | None = None
    latency_seconds: float | None = None
    provider_request_id: str | None = None
    error_code: str | None = None
    error: str | None = None
    detail: str | None = None
    note: str | None = None
    started_at: datetime
    finished_at: datetime | None = None


class ProviderCall(Attempt):
    """One call of a provider, and for which job."""

    id: int
    job_id: UUID | None = None
    """None where the job was removed."""
