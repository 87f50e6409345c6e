"""The patterns of a JSON schema, compiled once, by an engine whose time is known beforehand."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import re2
from jsonschema.exceptions import ValidationError

from promptstack.services.errors import InvalidInput
from promptstack.services.runs.json_schema.meter import Judge, Keyword, Meter

MAX_QUOTED = 100
MEMORY_BYTES = 1_000_000
"""Of one compiled pattern. RE2's own limit is 8 MB, which `\\pL{1000}` reaches after 0.2 s in which
no other thread of the process does anything."""
LOOKS_A_STEP = 1_000
"""A look is one instruction of a pattern at one character."""


class Patterns:
    """Those of one schema, and the keywords that use them.

    RE2 takes time that grows with the text only, times the pattern's length at the worst.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._compiled: dict[str, Any] = {}

    def compile(self, pattern: str) -> Any:
        """Compile one, and keep it. Raises `InvalidInput`."""
        if pattern in self._compiled:
            return self._compiled[pattern]
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
        return self._compiled[pattern]

    def keywords(self, additional_properties: Keyword) -> dict[str, Keyword]:
        """The keywords that look for patterns; the library's own of that name judges the rest."""

        def additional(
            judge: Judge, rule: Any, value: Any, schema: Mapping[str, Any]
        ) -> Iterable[ValidationError] | None:
            named = schema.get("patternProperties")
            if named and isinstance(value, dict):
                # The library would match them by its own engine.
                schema = {key: one for key, one in schema.items() if key != "patternProperties"}
                value = {
                    name: inner
                    for name, inner in value.items()
                    if not any(self._is_found(pattern, name) for pattern in named)
                }
            return additional_properties(judge, rule, value, schema)

        return {
            "pattern": self._pattern,
            "patternProperties": self._pattern_properties,
            "additionalProperties": additional,
        }

    def _pattern(self, _: Judge, pattern: str, value: Any, __: Any) -> Iterator[ValidationError]:
        if isinstance(value, str) and not self._is_found(pattern, value):
            yield ValidationError("does not match the pattern")

    def _pattern_properties(
        self, judge: Judge, patterns: Mapping[str, Any], value: Any, _: Any
    ) -> Iterator[ValidationError]:
        if not isinstance(value, dict):
            return
        for pattern, schema in patterns.items():
            for name, inner in value.items():
                if self._is_found(pattern, name):
                    yield from judge.descend(inner, schema, path=name, schema_path=pattern)

    def _is_found(self, pattern: str, text: str) -> bool:
        compiled = self.compile(pattern)
        self._meter.take(1 + len(text) * compiled.programsize // LOOKS_A_STEP)
        # An answer may hold half of a surrogate pair, which has no place in UTF-8.
        return compiled.search(text.encode(errors="replace")) is not None


def _words(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)
