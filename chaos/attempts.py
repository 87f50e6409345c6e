"""The provider calls that the ledger has on record, and the faults that broke them."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from promptstack.chaos.driver import Happened
from promptstack.chaos.plan import Fault

CLOCKS = timedelta(seconds=0.25)
"""How far our clock may be from the database's, and a signal from its record."""
BREAKS_CALLS = frozenset({Fault.KILL, Fault.STOP, Fault.TERM, Fault.PARTITION})
"""The faults of one worker. The calls that it had under way are paid for and lost."""


@dataclass(frozen=True)
class Attempt:
    """A provider call, as the ledger has it."""

    job_id: UUID
    number: int
    worker_id: UUID
    state: str
    billing: str
    started_at: datetime
    finished_at: datetime | None


def is_under_way(attempt: Attempt, fault: Happened) -> bool:
    """Whether the fault hit the worker that made the call, while it did."""
    return (
        attempt.worker_id == fault.worker_id
        and attempt.started_at - CLOCKS <= fault.ended
        and (attempt.finished_at is None or attempt.finished_at + CLOCKS >= fault.began)
        and attempt.started_at <= fault.began + CLOCKS
    )
