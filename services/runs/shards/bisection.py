"""Bisects a shard whose workers keep dying, until the item that kills them is alone and fails.

Other deaths, such as those of spot machines, cost no item a try: progress resets the count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.run_models import Run
from promptstack.repositories.runs.items import Slice
from promptstack.repositories.runs.outcomes import Ended
from promptstack.repositories.runs.runs import Change
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import WorkersLost
from promptstack.services.jobs.publishing import JobMessage

DEATHS_BEFORE_HALVES = 2
"""Deaths in a row with no item done; a single one may happen to any shard."""
DEATHS_OF_A_HALF = DEATHS_BEFORE_HALVES - 1
"""A half starts with so many: its next death bisects it at once."""

AddShard = Callable[[UnitOfWork, Run, Slice, int], JobMessage]
"""Adds the shard of a slice, with its deaths; returns the message to send after the commit."""


@dataclass(frozen=True)
class Bisected:
    """What is left of a shard for the worker that has claimed it."""

    first: int
    last: int
    messages: Sequence[JobMessage] = ()
    """The messages of the new shards."""
    failed: int = 0
    run: Run | None = None
    """The run with its new sums, if an item failed."""


def is_suspect(claim: Claim) -> bool:
    """Whether so many workers died over a shard that it is bisected before it is worked on."""
    return claim.deaths >= DEATHS_BEFORE_HALVES


def bisect_shard(unit: UnitOfWork, claim: Claim, run: Run, add_shard: AddShard) -> Bisected:
    """Make the second half of a shard a shard of its own, or fail an item that is alone.

    It reads no content, which may be what kills. It may run twice, after a lost commit: then it
    finds what it did. Raises `ClaimLost`.
    """
    first, last, deaths = unit.steps.shard_of(claim)
    if deaths < DEATHS_BEFORE_HALVES:
        return Bisected(first, last)
    whole = unit.items.next_slice(run.id, first, last - first + 1, until=last)
    if whole is None:
        return Bisected(first, last)
    if whole.items == 1:
        return _fail_alone(unit, claim, run, whole, deaths)
    half = unit.items.next_slice(run.id, whole.first, whole.items // 2, until=last)
    rest = half and unit.items.next_slice(run.id, half.last + 1, whole.items, until=last)
    if half is None or rest is None:
        raise AssertionError("each half of two or more open items has one")
    unit.steps.narrow_shard(claim, half.first, half.last, _deaths_of(half))
    return Bisected(half.first, half.last, [add_shard(unit, run, rest, _deaths_of(rest))])


def _deaths_of(half: Slice) -> int:
    """An item alone starts anew: it fails after as many deaths of its own as it has tries."""
    return 0 if half.items == 1 else DEATHS_OF_A_HALF


def _fail_alone(unit: UnitOfWork, claim: Claim, run: Run, whole: Slice, deaths: int) -> Bisected:
    if deaths <= claim.max_retries:
        return Bisected(whole.first, whole.last)
    error = WorkersLost(
        f"{deaths} workers died one after the other while they ran this item, which stood alone: "
        "it is not tried again by itself, as it may be what ends workers."
    )
    ended = Ended(whole.first, error_code=error.code, error=str(error))
    counted = unit.outcomes.end(run.id, [ended])
    changed = unit.runs.change(run.id, Change(**vars(counted)))
    return Bisected(whole.first, whole.last, failed=counted.failed, run=changed)
