"""Faults, by script or by rate."""

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

KINDS = {
    "none": "answers well; keeps a place in the script",
    "status": "refuses with `status`, `code`, `message` and the retry headers; not billed",
    "stray": "a 429 for no reason, with the retry headers and true ones of the limits; not billed",
    "reset": "resets the connection; not billed",
    "hang": "never answers; not billed",
    "billed_timeout": "bills, then answers after `seconds`",
    "drip": "sends the answer a byte every 50 ms",
    "truncated": "sends the first half of the JSON",
    "wrong_count": "leaves out the last vector, or the choice",
    "duplicate": "gives the last vector the index of the first",
    "shuffled": "sends the vectors in reverse, with their right indexes",
    "nan": "the first number of the first vector isn't one",
    "short": "all vectors lack their last number",
    "floats": "sends lists of floats, whatever was asked for",
    "refused": "the model refuses to answer, as its content filter would",
    "nul": "the generated text has a NUL character",
    "cut": "a stream ends after half of its events, as if it were whole",
    "broken": "the connection is reset after half of a stream",
    "stall": "nothing comes after half of a stream",
    "open_end": "the connection stays open after all of a stream",
    "error_event": "a stream ends after half of its events with an error: `status`, `code`",
}


MID_STREAM = frozenset({"cut", "broken", "stall", "error_event"})
"""The faults that hit a stream in its middle; an answer that is no stream is good then."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one call."""

    kind: str
    status: int = 500
    code: str | None = None
    message: str = "The simulator was told to refuse this."
    retry_after: float | str | None = None
    retry_after_ms: float | None = None
    seconds: float = 5.0
    endpoint: str = ""
    """Only calls whose path ends so."""
    model: str = ""
    """Only calls of this model."""

    def hits(self, path: str, model: str) -> bool:
        """Say whether it may happen to a call of this path and model."""
        return path.endswith(self.endpoint) and self.model in {"", model}

    def headers(self) -> dict[str, str]:
        """Return the headers that say how long to wait."""
        given = {"retry-after": self.retry_after, "retry-after-ms": self.retry_after_ms}
        return {name: str(value) for name, value in given.items() if value is not None}


NO_FAULT = Fault(kind="none")


def parse(raw: Mapping[str, Any]) -> Fault:
    """Read a fault of the script. Raises `ValueError` that says what is wrong with it."""
    if raw.get("kind") not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}")
    unknown = raw.keys() - {field.name for field in fields(Fault)}
    if unknown:
        raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
    return Fault(**raw)


def parse_rates(raw: Any) -> tuple[int, list[tuple[float, Fault]]]:
    """Read a seed and faults with their `rate`, 0 to 1. Raises `ValueError`."""
    if not isinstance(raw, dict) or raw.keys() - {"seed", "faults"}:
        raise ValueError("give seed and faults")
    rates = []
    for fault in raw.get("faults", []):
        rate = fault.get("rate")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise ValueError("rate must be a number from 0 to 1")
        rates.append((float(rate), parse({k: v for k, v in fault.items() if k != "rate"})))
    if sum(rate for rate, _ in rates) > 1:
        raise ValueError("the rates are more than 1 together")
    return int(raw.get("seed", 0)), rates


class FaultScript:
    """The faults to come: first those of the script, in order; then faults at random, by rate."""

    def __init__(self) -> None:
        self._coming: deque[Fault] = deque()
        self._rates: list[tuple[float, Fault]] = []
        self._random = random.Random(0)

    def add(self, faults: list[Fault]) -> None:
        """Append to the script."""
        self._coming.extend(faults)

    def set_rates(self, seed: int, rates: list[tuple[float, Fault]]) -> None:
        """Let a share of all calls fail from now on, the same ones for the same seed."""
        self._random = random.Random(seed)
        self._rates = rates

    def take(self, path: str, model: str) -> Fault:
        """Return the fault for a call of this path and model, or `NO_FAULT`."""
        for place, fault in enumerate(self._coming):
            if fault.hits(path, model):
                del self._coming[place]
                return fault
        if self._rates:
            drawn = self._random.random()
            for rate, fault in self._rates:
                if drawn < rate:
                    return fault if fault.hits(path, model) else NO_FAULT
                drawn -= rate
        return NO_FAULT

    def reset(self) -> None:
        """Drop the script and the rates."""
        self._coming.clear()
        self._rates = []
