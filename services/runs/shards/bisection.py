"""What becomes of a shard whose workers keep dying.

It is halved until the item that kills workers is alone; then only that item fails. Other deaths,
such as lost spot machines, cost no item a try: progress sets the count of deaths back to 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.runs.items import Ended, Slice
from promptstack.repositories.runs.models import Run
from promptstack.repositories.runs.runs import Change
from promptstack.repositories.session import UnitOfWork
from promptstack.services.errors import WorkersLost
from promptstack.services.jobs.publishing import JobMessage

DEATHS_BEFORE_HALVES = 2
"""In a row, with no item done: one may happen to any."""
UNDER_SUSPICION = DEATHS_BEFORE_HALVES - 1
"""With which a half begins: its next death halves it at once."""

AddShard = Callable[[UnitOfWork, Run, Slice, int], JobMessage]
"""Adds the shard of a slice, with so many deaths; its message, to be sent after the commit."""


@dataclass(frozen=True)
class Narrowed:
    """What is left of a shard for the worker that has it."""

    first: int
    last: int
    messages: Sequence[JobMessage] = ()
    """Messages of what was cut off."""
    failed: int = 0
    run: Run | None = None
    """With its new sums, where the item that stood alone has failed."""


def is_suspect(claim: Claim) -> bool:
    """Whether a shard has met so many deaths that it is looked at before it is worked on."""
    return claim.deaths >= DEATHS_BEFORE_HALVES


def narrow(unit: UnitOfWork, claim: Claim, run: Run, add_shard: AddShard) -> Narrowed:
    """Cut off the second half of a suspect shard, or give up the item that is left alone.

    Reads no content, as it may be that which kills. It may run twice, where the answer to a commit
    was lost: then it finds what it did. Raises `ClaimLost`.
    """
    first, last, deaths = unit.steps.shard_of(claim)
    if deaths < DEATHS_BEFORE_HALVES:
        return Narrowed(first, last)
    whole = unit.items.next_slice(run.id, first, last - first + 1, until=last)
    if whole is None:
        return Narrowed(first, last)
    if whole.items == 1:
        return _alone(unit, claim, run, whole, deaths)
    half = unit.items.next_slice(run.id, whole.first, whole.items // 2, until=last)
    rest = half and unit.items.next_slice(run.id, half.last + 1, whole.items, until=last)
    if half is None or rest is None:
        raise AssertionError("of two or more open items, each half has one")
    unit.steps.narrow_shard(claim, half.first, half.last, _deaths_of(half))
    return Narrowed(half.first, half.last, [add_shard(unit, run, rest, _deaths_of(rest))])


def _deaths_of(half: Slice) -> int:
    """One item alone is innocent until it has met as many deaths as it has tries, by itself."""
    return 0 if half.items == 1 else UNDER_SUSPICION


def _alone(unit: UnitOfWork, claim: Claim, run: Run, whole: Slice, deaths: int) -> Narrowed:
    if deaths <= claim.max_retries:
        return Narrowed(whole.first, whole.last)
    error = WorkersLost(
        f"{deaths} workers died one after the other while they ran this item, which stood alone: "
        "it is not tried again by itself, as it may be what ends workers."
    )
    ended = Ended(whole.first, error_code=error.code, error=str(error))
    counted = unit.items.end(run.id, [ended])
    changed = unit.runs.change(run.id, Change(**vars(counted)))
    return Narrowed(whole.first, whole.last, failed=counted.failed, run=changed)
