"""Rate limits as providers enforce them: buckets that refill all the time."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from promptstack.simulator.wire import LimitStatus, Refusal

PER_MINUTE = {
    "requests": "requests_per_minute",
    "tokens": "tokens_per_minute",
    "input_tokens": "input_tokens_per_minute",
    "output_tokens": "output_tokens_per_minute",
}
EVERY_MODEL = "*"
ROUNDING = 1e-9
BUSY_SECONDS = 0.5
"""What a caller is told to wait for a free place in flight."""


@dataclass(frozen=True)
class Limits:
    """The limits of one credential for a model; None is no limit."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    input_tokens_per_minute: float | None = None
    output_tokens_per_minute: float | None = None
    in_flight: int | None = None
    burst_seconds: float = 60.0
    """How many seconds' worth a bucket holds."""
    headers: bool = True
    """Whether answers say how the limits stand."""
    retry_after: str = "seconds"
    """How a refusal says it: `seconds` (whole ones), `milliseconds` (both headers), `none`."""


def parse_limits(raw: Mapping[str, Any]) -> tuple[str, Limits]:
    """Read a model (or `*`) and its limits. Raises `ValueError` that says what is wrong."""
    unknown = raw.keys() - {field.name for field in fields(Limits)} - {"model"}
    if unknown:
        raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
    given = {name: value for name, value in raw.items() if name != "model"}
    limits = Limits(**given)
    if limits.retry_after not in {"seconds", "milliseconds", "none"}:
        raise ValueError("retry_after must be seconds, milliseconds or none")
    for name in [*PER_MINUTE.values(), "in_flight", "burst_seconds"]:
        value = given.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} must be a number")
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be more than 0")
    return str(raw.get("model", EVERY_MODEL)), limits


class LimitReached(Refusal):
    """A 429: the limit is used up. Not billed."""

    def __init__(self, message: str, dimension: str, wait: float | None) -> None:
        super().__init__(429, message, "rate_limit_exceeded")
        self.dimension = dimension
        self.wait = wait
        """Seconds until the same call would be let in; None where it never would."""

    def headers(self, form: str) -> dict[str, str]:
        """Return the headers that say when to come again, in one of `Limits.retry_after`."""
        if self.wait is None or form == "none":
            return {}
        seconds = {"retry-after": str(max(1, math.ceil(self.wait)))}
        if form == "milliseconds":
            return {**seconds, "retry-after-ms": str(math.ceil(self.wait * 1_000))}
        return seconds


@dataclass
class Bucket:
    """The buckets of one credential and model."""

    limits: Limits
    filled_at: float
    levels: dict[str, float] = field(default_factory=dict)
    flying: int = 0

    def admit(self, costs: Mapping[str, float], now: float) -> None:
        """Charge a call or raise `LimitReached`; all dimensions or none."""
        self._fill(now)
        if self.limits.in_flight is not None and self.flying >= self.limits.in_flight:
            raise LimitReached("Too many concurrent requests.", "concurrency", BUSY_SECONDS)
        waits: dict[str, float] = {}
        for name, level in self.levels.items():
            limit = self._limit(name)
            if costs[name] > limit:
                raise LimitReached(
                    f"Request too large: limit {limit:.0f} {name} a minute, requested "
                    f"{costs[name]:.0f}.",
                    name,
                    None,
                )
            # A call larger than the bucket needs a full one and leaves it in debt.
            needed = min(costs[name], self._full(name))
            if level < needed - ROUNDING:
                waits[name] = (needed - level) * 60 / limit
        if waits:
            name = max(waits, key=lambda name: waits[name])
            raise LimitReached(
                f"Rate limit reached on {name} per minute: limit {self._limit(name):.0f}.",
                name,
                waits[name],
            )
        for name in self.levels:
            self.levels[name] -= costs[name]

    def status(self, now: float) -> dict[str, LimitStatus]:
        """The state of each limit, for the headers."""
        self._fill(now)
        return {
            name: LimitStatus(
                limit=int(self._limit(name)),
                remaining=max(0, int(level + ROUNDING)),
                reset_seconds=(self._full(name) - level) * 60 / self._limit(name),
            )
            for name, level in self.levels.items()
        }

    def change(self, limits: Limits, now: float) -> None:
        """Change the limits; what is left in the buckets stays, up to the new capacity."""
        self._fill(now)
        self.limits = limits
        self._fill(now)

    def _fill(self, now: float) -> None:
        for name, setting in PER_MINUTE.items():
            limit = getattr(self.limits, setting)
            if limit is None:
                self.levels.pop(name, None)
                continue
            full = self._full(name)
            filled = self.levels.get(name, full) + limit / 60 * (now - self.filled_at)
            self.levels[name] = min(full, filled)
        self.filled_at = now

    def _limit(self, name: str) -> float:
        limit: float = getattr(self.limits, PER_MINUTE[name])
        return limit

    def _full(self, name: str) -> float:
        full = self._limit(name) / 60 * self.limits.burst_seconds
        return max(1.0, full) if name == "requests" else full


class Limiter:
    """The buckets of all credentials and models."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limits = {EVERY_MODEL: limits}
        self._first = limits
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def set(self, model: str, limits: Limits) -> None:
        """Change the limits of a model, or of all models without limits of their own."""
        self._limits[model] = limits
        for (_, name), bucket in self._buckets.items():
            bucket.change(self._of(name), self._clock())

    def bucket(self, credential: str, model: str) -> Bucket:
        """The bucket of a credential and model, full when it is new."""
        key = (credential, model)
        if key not in self._buckets:
            self._buckets[key] = Bucket(self._of(model), self._clock())
        return self._buckets[key]

    def admit(self, bucket: Bucket, input_tokens: int, output_tokens: int) -> None:
        """Charge a call. Raises `LimitReached`."""
        costs = {
            "requests": 1.0,
            "tokens": float(input_tokens + output_tokens),
            "input_tokens": float(input_tokens),
            "output_tokens": float(output_tokens),
        }
        bucket.admit(costs, self._clock())

    def status(self, bucket: Bucket) -> dict[str, LimitStatus]:
        """The state of a bucket, or nothing if its headers are off."""
        return bucket.status(self._clock()) if bucket.limits.headers else {}

    def reset(self) -> None:
        """Return to the limits of the start, with full buckets."""
        self._limits = {EVERY_MODEL: self._first}
        self._buckets.clear()

    def _of(self, model: str) -> Limits:
        return self._limits.get(model, self._limits[EVERY_MODEL])
