"""Faults by script: each provider call takes the next one."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

KINDS = {
    "none": "answers well; keeps a place in the script",
    "status": "refuses with `status`, `code`, `message` and the retry headers; not billed",
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
}


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


class FaultScript:
    """The faults still to come, in order."""

    def __init__(self) -> None:
        self._coming: deque[Fault] = deque()

    def add(self, faults: list[Fault]) -> None:
        """Append to the script."""
        self._coming.extend(faults)

    def take(self) -> Fault:
        """Return the next fault, or `NO_FAULT` at the end of the script."""
        return self._coming.popleft() if self._coming else NO_FAULT

    def reset(self) -> None:
        """Drop what is still to come."""
        self._coming.clear()
