"""What the repositories of jobs take and return."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from promptstack.config.names import Queue
from promptstack.repositories.access_models import Tier
from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.models import JobKind, JobState


@dataclass(frozen=True)
class Claim:
    """A job as one worker took it. Its `attempt` is the fencing token of everything it stores."""

    job_id: UUID
    attempt: int
    worker_id: UUID
    user_id: UUID | None
    provider: str
    model: str
    request: dict[str, Any]
    failures: int
    max_retries: int
    is_bulk: bool
    seconds_left: float
    """From the claim to the job's deadline, by the database's clock."""
    kind: JobKind
    run_id: UUID | None = None
    """Whose shard it is."""
    deaths: int = 0
    """Workers that died one after the other with it in hand, and nothing of it done meanwhile."""
    tier: Tier = Tier.FREE
    """Of its user."""
    is_checked: bool = True
    """False while the request is as the caller gave it."""
    is_readable: bool = True
    """False where the caller gave JSON that Python can't read: the request is empty then."""

    def lost(self) -> ClaimLost:
        """What to raise where another has the job."""
        return ClaimLost(f"Attempt {self.attempt} lost job {self.job_id}; nothing was stored.")


@dataclass(frozen=True)
class JobSnapshot:
    """Where a job stands, and what its calls came to."""

    id: UUID
    state: str
    provider: str
    model: str
    current: int
    total: int
    attempt: int
    failures: int
    error_code: str | None
    error: str | None
    not_before: datetime | None
    seconds_until_due: float | None
    """How long it waits before its next try, by the database's clock; None where it doesn't."""
    calls: int
    tokens: int
    """Of all its calls, input and output together."""
    is_followed: bool = False
    """Whether another service's Celery has still to be told its end."""


@dataclass(frozen=True)
class JobRef:
    """What a message needs to know of a job."""

    id: UUID
    kind: str
    queue: str
    provider: str
    model: str
    attempt: int
    state: str
    published_at: datetime | None
    created_at: datetime
    user_id: UUID | None = None


class NewJobRow(NamedTuple):
    """A job that is to be added."""

    id: UUID
    kind: JobKind
    queue: Queue
    provider: str
    model: str
    request: str
    """As JSON."""
    request_hash: str
    user_id: UUID | None
    api_key_id: UUID | None
    idempotency_key: str | None
    max_retries: int
    webhook: str | None
    """The address that its end is told to, beside its user's endpoints."""
    lifetime: float
    """Seconds until its deadline, by the clock of the database, which ends it."""
    tags: Sequence[str] = ()


class NewResponse(NamedTuple):
    """What a response of OpenAI's API adds to its job; see `StoredResponse`."""

    asked: str
    """As JSON."""
    turns_before: int
    is_kept: bool


class Accepted(NamedTuple):
    """When a job was added, and its deadline."""

    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True)
class JobFilter:
    """Which jobs are asked for; what is None is not asked for."""

    state: JobState | None = None
    kind: JobKind | None = None
    """Without one, parts of runs are left out, and operations."""
    provider: str | None = None
    model: str | None = None
    error: str | None = None
    """The code of its error."""
    tag: str | None = None
    since: datetime | None = None
    """When they were accepted."""
    until: datetime | None = None
    user_id: UUID | None = None
    api_key_id: UUID | None = None
    """The key that they came with."""


@dataclass(frozen=True)
class ClaimStep:
    """A message for whose job a worker asks."""

    job_id: UUID
    published_at: datetime | None = None
    """When the message was sent; see `OutboxRepository.take_unpublished`."""

    @property
    def key(self) -> UUID:
        """What its result is found by."""
        return self.job_id


@dataclass(frozen=True)
class NewCall:
    """A call that is about to leave."""

    call: int
    """Its number within the attempt."""
    provider: str
    model: str
    items: int = 1
    expected_tokens: int | None = None
    expected_cost_usd: Decimal | None = None
    most_usd: Callable[[], Decimal | None] = lambda: None
    """Computes the most it can cost; None where nobody knows. Asked only where a budget counts."""


@dataclass(frozen=True)
class CappedCall:
    """Whose budgets a call counts for."""

    user_id: UUID | None
    api_key_id: UUID | None
    attempt_id: int | None
    """None where it isn't on record yet."""


@dataclass(frozen=True)
class BeginStep:
    """A call that is about to leave, with the claim under which it does."""

    claim: Claim
    call: NewCall

    @property
    def key(self) -> tuple[UUID, int]:
        """What its result is found by."""
        return self.claim.job_id, self.call.call


@dataclass(frozen=True)
class Begun:
    """A call on record."""

    attempt_id: int
    is_new: bool
    """False where it was on record already."""


@dataclass(frozen=True)
class SucceedStep:
    """A call whose answer is a job's result."""

    claim: Claim
    attempt_id: int
    result: Mapping[str, object]
    took: Mapping[str, Any]
    """What the attempt came to; see `AttemptRepository.settle`."""

    @property
    def key(self) -> UUID:
        """What its result is found by."""
        return self.claim.job_id


@dataclass(frozen=True)
class Totals:
    """Sums over a job's calls."""

    calls: int
    items: int
    """Items that calls answered."""
    tokens: int
