"""Jobs and attempts as their owner may see them: copies of the ledger's rows."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from promptstack.config.models_file import Money
from promptstack.repositories.models import AttemptState, Billing, JobKind, JobState


class WaitReason(StrEnum):
    """Why a job is in the queue."""

    LIMIT = "limit"
    """A limit of its provider has no room."""
    TURN = "turn"
    """It is its user's jobs' turn to wait: users share."""
    CIRCUIT = "circuit"
    """Its provider has failed too often, and is not asked for a while."""
    BACKOFF = "backoff"
    """Its last attempt failed, and the next one is later."""
    NO_WORKER = "no_worker"
    """No worker is alive that could run it."""
    QUEUE = "queue"
    """Others are before it."""


class Wait(BaseModel):
    """Why a job that is queued does not run yet."""

    model_config = ConfigDict(frozen=True)

    reason: WaitReason
    detail: str
    until: datetime | None = None
    """When it goes on, where that is known."""


def asked(provider: str, model: str) -> str:
    """Whom a job asks, as it is shown; `?` for what a worker has still to choose."""
    return f"{provider or '?'}/{model or '?'}"


class JobView(BaseModel):
    """A job as its owner may see it."""

    model_config = ConfigDict(from_attributes=True, frozen=True)

    id: UUID
    kind: JobKind
    state: JobState
    provider: str
    model: str
    current: int
    total: int
    attempt: int
    failures: int
    max_retries: int
    tags: list[str]
    error_code: str | None
    error: str | None
    result: dict[str, Any] | None
    waits: Wait | None = None
    """Of a queued job: what it waits for."""
    not_before: datetime | None
    expires_at: datetime
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def queued(cls, **known: Any) -> "JobView":
        """A job that was added just now."""
        return cls(**_QUEUED, **known)


_QUEUED: dict[str, Any] = {
    "state": JobState.QUEUED,
    "current": 0,
    "total": 1,
    "attempt": 0,
    "failures": 0,
    "error_code": None,
    "error": None,
    "result": None,
    "not_before": None,
    "started_at": None,
    "finished_at": None,
}


class AttemptView(BaseModel):
    """One provider call as the job's owner may see it."""

    model_config = ConfigDict(from_attributes=True, frozen=True)

    number: int
    call: int
    state: AttemptState
    billing: Billing
    provider: str
    model: str
    items: int
    expected_tokens: int | None
    expected_cost_usd: Money | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    cost_usd: Money | None
    limiter_wait_seconds: float | None
    latency_seconds: float | None
    provider_request_id: str | None
    error_code: str | None
    error: str | None
    detail: str | None
    note: str | None
    started_at: datetime
    finished_at: datetime | None


class CallView(AttemptView):
    """A provider call with the job that made it."""

    id: int
    job_id: UUID | None
    """None when the job was pruned, and of a search."""
