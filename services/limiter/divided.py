"""The buckets of one worker while Redis is away: they hold its share of each limit, never more."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from uuid import uuid4

from promptstack.services.limiter.terms import (
    DIMENSIONS,
    Bucket,
    Grant,
    Later,
    Limits,
    Need,
    Settlement,
    TooLarge,
    Verdict,
    Wait,
)
from promptstack.services.llm.answers import Outcome

UNKNOWN_IN_FLIGHT = 4
"""Calls in flight in all workers together, where no limit was ever known."""
POLL_SECONDS = 0.05
PAUSE_SECONDS = 0.5
"""After a 429 without Retry-After."""
RECENT_CALLS, SEVERAL, SHORT_WAIT = 20, 3, 3.0
"""As in `lua/throttle.lua`, which says why."""


@dataclass
class _Level:
    """What a bucket held when it was last filled."""

    amounts: dict[str, float]
    filled_at: float
    in_flight: int = 0
    paused_until: float = 0.0
    recent: deque[Outcome] = field(default_factory=lambda: deque(maxlen=RECENT_CALLS))
    """How the last calls ended."""


class DividedBuckets:
    """Grants `limit / workers`. They start empty: the shared limit may just be used up."""

    def __init__(
        self, workers: Callable[[], int], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._workers = workers
        self._clock = clock
        self._levels: dict[Bucket, _Level] = {}

    def ask(self, bucket: Bucket, limits: Limits, need: Need, patience: float) -> Verdict:
        """Ask whether a call may be sent; `limits` are those of all workers together."""
        now = self._clock()
        for limit in (limits.tokens, limits.input):
            if limit is not None and need.input_tokens > limit:
                return TooLarge(limit, "tokens")
        share = self._share(limits)
        level = self._fill(bucket, share, now)
        wait = level.paused_until - now
        costs = _costs(need, share)
        for name, cost in costs.items():
            rate = _rate(share, name)
            if rate is not None:
                # A call larger than the bucket waits for a full one and leaves it in debt.
                wait = max(wait, (min(cost, _full(name, rate)) - level.amounts[name]) / rate)
        if share.in_flight is not None and level.in_flight >= share.in_flight:
            wait = max(wait, POLL_SECONDS)
        if wait > patience:
            return Later(wait, "its share of the limit")
        if wait > 0:
            return Wait(wait)
        for name, cost in costs.items():
            if name in level.amounts:
                level.amounts[name] -= cost
        level.in_flight += 1
        return Grant(uuid4().hex, limits)

    def settle(self, bucket: Bucket, settlement: Settlement) -> None:
        """Report that a call which was granted here has ended."""
        level = self._levels.get(bucket)
        if level is None:
            return
        level.in_flight = max(0, level.in_flight - 1)
        level.recent.append(settlement.outcome)
        if settlement.outcome is Outcome.THROTTLED and not _is_accident(settlement, level):
            pause = settlement.retry_after or PAUSE_SECONDS
            level.paused_until = max(level.paused_until, self._clock() + pause)

    def forget(self) -> None:
        """Start again with empty buckets at the next outage."""
        self._levels.clear()

    def _share(self, limits: Limits) -> Limits:
        workers = max(1, self._workers())
        in_flight = limits.in_flight
        if all(_rate(limits, name) is None for name in DIMENSIONS) and in_flight is None:
            in_flight = UNKNOWN_IN_FLIGHT
        return replace(
            limits,
            **{name: _divided(getattr(limits, name), workers) for name in DIMENSIONS},
            # At least one: with less, this worker could send nothing.
            in_flight=None if in_flight is None else max(1.0, in_flight // workers),
        )

    def _fill(self, bucket: Bucket, share: Limits, now: float) -> _Level:
        level = self._levels.setdefault(bucket, _Level({}, now))
        for name in DIMENSIONS:
            rate = _rate(share, name)
            if rate is None:
                level.amounts.pop(name, None)
                continue
            filled = level.amounts.get(name, 0.0) + rate * (now - level.filled_at)
            level.amounts[name] = min(_full(name, rate), filled)
        level.filled_at = now
        return level


def _is_accident(settlement: Settlement, level: _Level) -> bool:
    """Whether a 429 is about its call alone, by the rule of `lua/throttle.lua`."""
    throttled = level.recent.count(Outcome.THROTTLED)
    if throttled >= SEVERAL and 2 * throttled >= len(level.recent) + level.in_flight:
        return False
    if settlement.report and settlement.report.limits:
        return all(state.remaining > 0 for state in settlement.report.limits.values())
    return (settlement.retry_after or 0.0) <= SHORT_WAIT


def _rate(limits: Limits, name: str) -> float | None:
    """How much of the limit comes back each second."""
    limit: float | None = getattr(limits, name)
    return None if limit is None else max(limit, 0.001) / 60


def _full(name: str, rate: float) -> float:
    """What a second brings, but at least one request."""
    return max(1.0, rate) if name == "requests" else rate


def _divided(limit: float | None, workers: int) -> float | None:
    return None if limit is None else limit / workers


def _costs(need: Need, limits: Limits) -> dict[str, float]:
    return {
        "requests": 1.0,
        "tokens": float(need.input_tokens + need.output_tokens),
        "input": float(need.input_tokens),
        "output": float(need.output_tokens),
    }
