"""What became of the load, and what of it must not be."""

from dataclasses import dataclass, field
from uuid import UUID

from promptstack.chaos.plan import LOST_SECONDS
from promptstack.chaos.recovery import Spans, late


@dataclass
class Verdict:
    """What became of the load."""

    accepted: int
    ended: dict[str, int]
    """Jobs by their state."""
    failures: dict[str, int]
    """Failed jobs by their error code."""
    lost: int
    """Accepted jobs that are not there."""
    unfinished: int
    """Accepted jobs that have not ended, and nothing moves any more."""
    changed_after_end: int
    """Results or states that were changed when the job had ended: doubled results."""
    wrong: int
    """Successes whose answer is missing or another job's."""
    calls_billed: int | None = None
    billed_twice: int | None = None
    """Calls billed beyond the first of their job. None where nobody keeps the provider's books."""
    unrecorded: int | None = None
    """Calls that were billed and have no attempt in the ledger."""
    unbilled: int | None = None
    """Successes that the provider's books don't have: these are not the books of this load."""
    billed_twice_by: dict[str, int] = field(default_factory=dict)
    """Those calls by the fault that broke the call before them."""
    unexplained: list[UUID] = field(default_factory=list)
    """Jobs that were billed twice with no fault to explain it."""
    details: list[str] = field(default_factory=list)
    """The calls of these jobs."""
    in_flight_at_faults: int = 0
    """Calls under way at a worker when it was killed, frozen, stopped, or cut off."""
    recovery: dict[str, Spans] = field(default_factory=dict)
    """How long work stood still, by what it waited for."""
    lost_seconds: float = LOST_SECONDS
    """The heartbeat timeout."""
    hit: int = 0
    """Calls that were lost as their worker was killed."""
    rebuilt: int = 0
    """Jobs whose progress in Redis agrees with the database."""

    def problems(self) -> list[str]:
        """Say what must not be, in words; empty where all is well."""
        succeeded = self.ended.get("succeeded", 0)
        found = {
            "no job succeeded, which shows nothing": not succeeded,
            f"{self.lost} accepted jobs are lost": self.lost,
            f"{self.unfinished} accepted jobs have not ended": self.unfinished,
            f"{self.changed_after_end} jobs changed after their end": self.changed_after_end,
            f"{self.wrong} answers are missing or another job's": self.wrong,
            f"{self.unrecorded} billed calls are not on record": self.unrecorded,
            f"{self.unbilled} answers are not on the provider's books": self.unbilled,
            f"{len(self.unexplained)} jobs were billed twice for no fault": len(self.unexplained),
            f"{self.billed_twice} calls billed twice, {self.in_flight_at_faults} in flight": max(
                0, (self.billed_twice or 0) - self.in_flight_at_faults
            ),
            f"the progress of {self.accepted - self.rebuilt} jobs is wrong": self.accepted
            - self.rebuilt,
        }
        return [
            *(words for words, count in found.items() if count),
            *late(self.recovery, self.hit, self.lost_seconds),
        ]
