"""Work at a provider, and how long the known limits make it take."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from promptstack.services.limiter.terms import Limits


class Work(NamedTuple):
    """Calls that are still to be made, as far as they can be estimated."""

    calls: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0


class Weighted(NamedTuple):
    """Work that shares the limits with other work."""

    work: Work
    weight: float
    """How much of it is done while one unit of the other is."""


def seconds_of(work: Work, limits: Limits) -> float | None:
    """Return the least time that these limits a minute allow. None if none is known."""
    takes = (
        (work.calls, limits.requests),
        (work.input_tokens + work.output_tokens, limits.tokens),
        (work.input_tokens, limits.input),
        (work.output_tokens, limits.output),
    )
    known = [taken / limit * 60 for taken, limit in takes if limit]
    return max(known) if known else None


def done_with(own: Work, beside: Iterable[Weighted]) -> Work:
    """Return all that is done until `own` is, if it shares the limits with what is `beside` it.

    Of other work as much is done as its weight gives it, and no more than there is.
    """
    others = list(beside)
    return Work(
        *(
            mine + sum(min(other.work[at], mine * other.weight) for other in others)
            for at, mine in enumerate(own)
        )
    )


def added(works: Sequence[Work]) -> Work:
    """Return the sum of works."""
    return Work(*(math.fsum(column) for column in zip(*works, strict=True))) if works else Work()
