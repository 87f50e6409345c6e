"""What judging one answer by a JSON schema takes, counted while it is done."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from jsonschema.exceptions import ValidationError

Judge = Any
JudgeType = Any
"""The library's validators and their classes, of whose methods its protocol names only some."""
Keyword = Callable[[Judge, Any, Any, Any], Iterable[ValidationError] | None]
"""What judges a value by the rule that stands at its name in a schema."""

CHARACTERS_A_VALUE = 50
VALUES_A_STEP = 25
"""The library's errors quote what they are about, whoever reads them, and that takes its time."""
STEPS_A_LOOK = 200
"""How many steps are done between two looks at the clock."""


class OverBudget(Exception):
    """Judging takes more than it may."""


class Meter:
    """Counts steps, each of some microseconds, and ends what takes too many or too long.

    Used by one thread. Time is that of its processor, so that a busy machine fails no answer.
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
        self._of_schema: dict[int, int] = {}
        self._of_answer: dict[int, int] = {}
        self.width = 0
        """Members of the value in which those are looked for that nothing has judged."""

    @property
    def taken(self) -> int:
        """Steps since `begin`."""
        return self._steps - self._left

    def know(self, schema: Any) -> None:
        """Measure what answers are judged by."""
        _measure(schema, self._of_schema)

    def begin(self, answer: Any) -> None:
        """Measure an answer, and count from nothing."""
        self._left = self._look_at = self._steps
        self.width = 0
        self._until = self._clock() + self._seconds
        self._of_answer = {}
        _measure(answer, self._of_answer)

    def take(self, steps: int) -> None:
        """Count steps before they are done. Raises `OverBudget`."""
        self._left -= steps
        if self._left > self._look_at:
            return
        self._look_at = max(0, self._left - STEPS_A_LOOK)
        if self._left < 0 or self._clock() > self._until:
            raise OverBudget

    def is_schema(self, value: Any) -> bool:
        """Whether an object is a part of the schema, and not of the answer."""
        return id(value) in self._of_schema

    def size(self, value: Any) -> int:
        """How many values stand in one of the answer or of the schema, itself among them."""
        if isinstance(value, str | int):
            return _length(value)
        return self._of_answer.get(id(value)) or self._of_schema.get(id(value), 1)


def _length(value: str | int) -> int:
    digits = len(value) if isinstance(value, str) else value.bit_length()
    return 1 + digits // CHARACTERS_A_VALUE


def _measure(value: Any, sizes: dict[int, int]) -> int:
    """Note the size of every list and object. What is measured nests within bounds."""
    match value:
        case str() | int():
            return _length(value)
        case list():
            size = 1 + sum(_measure(inner, sizes) for inner in value)
        case dict():
            size = 1 + sum(_length(name) + _measure(inner, sizes) for name, inner in value.items())
        case _:
            return 1
    sizes[id(value)] = size
    return size
