"""How long work stood still after a fault, and how long it may.

The jobs of a killed worker must be free within 20 seconds, 99 of 100 of them, and all within 30.
That is for workers that count as dead after 12 seconds without a heartbeat: `LOST_SECONDS`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from math import ceil
from statistics import median
from uuid import UUID

from promptstack.chaos.attempts import Attempt
from promptstack.chaos.driver import Happened
from promptstack.chaos.plan import Fault

FREE = "a killed worker's job was free"
FREE_MOST_SECONDS, FREE_LONGEST_SECONDS = 8.0, 18.0
"""How long a job may wait after its worker counts as dead: 99 of 100 jobs, and all of them."""
LOSES_MESSAGES = frozenset({Fault.FLUSH, Fault.REDIS_KILL, Fault.REDIS_REPLACE})
STOPS_LEDGER = frozenset({Fault.POSTGRES_KILL, Fault.POSTGRES_RESTART})
LEDGER_AWAY = STOPS_LEDGER | {Fault.POSTGRES_FULL}
"""While PostgreSQL takes no writes, no heartbeat can be sent and no job freed."""


@dataclass(frozen=True)
class Spans:
    """How long something took, in seconds."""

    count: int
    median: float
    most: float
    """99 of 100 took no longer."""
    longest: float

    @classmethod
    def of(cls, spans: Sequence[float]) -> "Spans":
        """Sum them up; there must be some."""
        ordered = sorted(spans)
        return cls(
            len(ordered),
            median(ordered),
            ordered[ceil(0.99 * (len(ordered) - 1))],
            ordered[-1],
        )


def late(recovery: Mapping[str, Spans], hit: int, lost_seconds: float) -> list[str]:
    """Say which jobs of killed workers were free too late; empty where all is well.

    `hit` is how many calls killed workers lost. Where there are some, there must be a measurement.
    """
    free = recovery.get(FREE)
    if free is None:
        return [f"of {hit} jobs of killed workers none was measured"] if hit else []
    most, longest = lost_seconds + FREE_MOST_SECONDS, lost_seconds + FREE_LONGEST_SECONDS
    found = {
        f"1 of 100 jobs of killed workers was free after {free.most:.1f} s, not within "
        f"{most:.0f} s": free.most > most,
        f"a job of a killed worker was free after {free.longest:.1f} s, not within "
        f"{longest:.0f} s": free.longest > longest,
    }
    return [words for words, is_so in found.items() if is_so]


def measure(
    attempts: Sequence[Attempt], happened: Sequence[Happened], slots: int
) -> dict[str, Spans]:
    """Measure how long work stood still, by what it waited for.

    `slots` is how many calls all workers make at once.
    """
    starts = sorted(attempt.started_at for attempt in attempts)
    found: dict[str, list[float]] = {}

    def note(what: str, seconds: float) -> None:
        found.setdefault(what, []).append(seconds)

    killed = {one.worker_id: one for one in happened if one.fault is Fault.KILL}
    by_job: dict[UUID, list[Attempt]] = {}
    for attempt in attempts:
        by_job.setdefault(attempt.job_id, []).append(attempt)
    for calls in by_job.values():
        for lost, again in pairwise(calls):
            kill = killed.get(lost.worker_id)
            if kill is not None and lost.state == "lost" and lost.finished_at is not None:
                free = _seconds(lost.finished_at - kill.began)
                note(FREE, free - _away(happened, kill.began, lost.finished_at))
                note("a killed worker's job ran again", _seconds(again.started_at - kill.began))
    for one in happened:
        # As many as could have been taken off the queue before: the next one is news.
        later = [start for start in starts if start > one.ended][: slots + 1]
        if len(later) > slots:
            seconds = _seconds(later[-1] - one.ended)
            if one.fault in LOSES_MESSAGES:
                note("the queue moved after Redis lost it or was away", seconds)
            if one.fault in STOPS_LEDGER:
                note("the queue moved after PostgreSQL was back", seconds)
    return {what: Spans.of(spans) for what, spans in found.items()}


def _away(happened: Sequence[Happened], began: datetime, ended: datetime) -> float:
    """Seconds between two times in which the ledger itself was away."""
    total, until = 0.0, began
    for one in sorted(happened, key=lambda one: one.began):
        if one.fault in LEDGER_AWAY:
            since = max(one.began, until)
            until = max(until, min(one.ended, ended))
            total += max(0.0, _seconds(until - since))
    return total


def _seconds(span: timedelta) -> float:
    return span.total_seconds()
