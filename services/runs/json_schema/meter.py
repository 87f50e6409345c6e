"""Counts the steps of validating one answer by a JSON schema."""

import time
from collections.abc import Callable
from typing import Any

CHARACTERS_A_VALUE = 50
STEPS_A_LOOK = 200
"""Steps between two looks at the clock."""


class OverBudget(Exception):
    """Validation takes more steps or time than it may."""


class Meter:
    """Counts steps of some microseconds each, and ends what takes too many or too long.

    One thread uses it. It measures processor time, so that a busy machine fails no answer.
    """

    def __init__(
        self, steps: int, seconds: float, clock: Callable[[], float] = time.thread_time
    ) -> None:
        self._steps = steps
        self._seconds = seconds
        self._clock = clock
        self._left = steps
        self._look_at = steps
        self._until = 0.0
        self._sizes: dict[int, int] = {}

    @property
    def taken(self) -> int:
        """Steps since `begin`."""
        return self._steps - self._left

    def begin(self, answer: Any) -> None:
        """Measure an answer, and count from zero."""
        self._left = self._look_at = self._steps
        self._until = self._clock() + self._seconds
        self._sizes = {}
        self._measure(answer)

    def take(self, steps: int) -> None:
        """Count steps before they are done. Raises `OverBudget`."""
        self._left -= steps
        if self._left > self._look_at:
            return
        self._look_at = max(0, self._left - STEPS_A_LOOK)
        if self._left < 0 or self._clock() > self._until:
            raise OverBudget

    def size(self, value: Any) -> int:
        """Return how many values a part of the answer has, itself included."""
        return _length(value) if isinstance(value, str | int) else self._sizes.get(id(value), 1)

    def _measure(self, value: Any) -> int:
        """Note the size of every list and object. The answer's depth is bounded."""
        match value:
            case str() | int():
                return _length(value)
            case list():
                size = 1 + sum(map(self._measure, value))
            case dict():
                size = 1 + sum(_length(name) + self._measure(one) for name, one in value.items())
            case _:
                return 1
        self._sizes[id(value)] = size
        return size


def _length(value: str | int) -> int:
    digits = len(value) if isinstance(value, str) else value.bit_length()
    return 1 + digits // CHARACTERS_A_VALUE
