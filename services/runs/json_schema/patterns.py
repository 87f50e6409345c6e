"""Patterns of a JSON schema, compiled once by RE2, whose time is bounded."""

from collections.abc import Iterator
from typing import Any

import re2
from jsonschema.exceptions import ValidationError

from promptstack.services.errors import InvalidInput
from promptstack.services.runs.json_schema.meter import Meter

MAX_QUOTED = 100
MEMORY_BYTES = 1_000_000
"""Of one compiled pattern. RE2's own limit is 8 MB, which `\\pL{1000}` reaches after 0.2 s in which
no other thread of the process does anything."""
LOOKS_A_STEP = 1_000
"""A look is one instruction of a pattern at one character."""


class Patterns:
    """The patterns of one schema.

    RE2's time grows with the length of the text, times that of the pattern at worst.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._compiled: dict[str, Any] = {}

    def compile(self, pattern: str) -> None:
        """Compile a pattern and keep it. Raises `InvalidInput`."""
        if pattern in self._compiled:
            return
        options = re2.Options()
        options.log_errors = False
        options.max_mem = MEMORY_BYTES
        try:
            self._compiled[pattern] = re2.compile(pattern.encode(), options)
        except (re2.error, UnicodeEncodeError) as error:
            raise InvalidInput(
                f"The schema's pattern {pattern[:MAX_QUOTED]!r} can't be used, as RE2 doesn't take "
                f"it ({_words(error)}); make it simpler, without look-around and back-references."
            ) from None

    def validate(self, _: Any, pattern: str, value: Any, __: Any) -> Iterator[ValidationError]:
        """Check the keyword `pattern`."""
        if not isinstance(value, str):
            return
        compiled = self._compiled[pattern]
        self._meter.take(1 + len(value) * compiled.programsize // LOOKS_A_STEP)
        # An answer may hold half of a surrogate pair, which UTF-8 can't encode.
        if compiled.search(value.encode(errors="replace")) is None:
            yield ValidationError("does not match the pattern")


def _words(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)
