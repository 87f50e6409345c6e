"""Bounds of a caller's JSON schema, measured before anything is done with it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from promptstack.services.errors import InvalidInput

ADVICE = "leave out what it doesn't need, or ask for less at once"
WORDS = {
    "nodes": "values",
    "characters": "characters in its names and texts",
    "properties": "properties",
    "enum_members": "members of enum",
    "patterns": "patterns",
    "patterns_characters": "characters in all its patterns together",
}


@dataclass(frozen=True)
class SchemaBounds:
    """The bounds. Each has a setting, MAX_SCHEMA_... or MAX_JUDGING_..., which explains it."""

    nodes: int = 10_000
    depth: int = 50
    characters: int = 200_000
    properties: int = 1_000
    enum_members: int = 1_000
    patterns: int = 100
    pattern_characters: int = 1_000
    patterns_characters: int = 10_000
    expanded: int = 100_000
    judging_steps: int = 200_000
    judging_seconds: float = 2.0

    def check(self, schema: Any, what: str = "The schema") -> None:
        """Raise `InvalidInput` for a schema beyond a bound.

        It is read as any JSON, so it need not be a schema. The check stops at the first bound, so
        it takes some milliseconds at most.
        """
        tally = _Tally(self, what)
        tally.add("nodes")
        level = [schema]
        depth = 0
        while level:
            if depth > self.depth:
                raise self.too_deep(what)
            level = [inner for value in level for inner in tally.enter(value)]
            depth += 1

    def check_tools(self, parameters: Sequence[Any]) -> None:
        """Do so for the parameters of all tools together."""
        if parameters:
            self.check(list(parameters), "What the tools take")

    def too_deep(self, what: str) -> InvalidInput:
        """The error of a schema that is nested too deep."""
        return InvalidInput(
            f"{what} is nested more than {self.depth} levels deep, its references followed "
            "(MAX_SCHEMA_DEPTH); make it flatter."
        )

    def too_large(self, what: str, name: str, words: str) -> InvalidInput:
        """The error of a schema beyond a bound."""
        return InvalidInput(
            f"{what} has more than {getattr(self, name):,} {words} (MAX_SCHEMA_{name.upper()}); "
            f"{ADVICE}."
        )


class _Tally:
    """Counts what a schema has."""

    def __init__(self, bounds: SchemaBounds, what: str) -> None:
        self._bounds = bounds
        self._what = what
        self._found = dict.fromkeys(WORDS, 0)

    def add(self, name: str, number: int = 1) -> None:
        self._found[name] += number
        if self._found[name] > getattr(self._bounds, name):
            raise self._bounds.too_large(self._what, name, WORDS[name])

    def enter(self, value: Any) -> Iterator[Any]:
        """Count a value, and return the values in it."""
        match value:
            case str():
                self.add("characters", len(value))
            case list() | tuple():
                self.add("nodes", len(value))
                yield from value
            case dict():
                self.add("nodes", len(value))
                for name, inner in value.items():
                    self.add("characters", len(str(name)))
                    self._note(name, inner)
                    yield inner
            case _:
                pass  # a number, true, false and null have nothing more in them

    def _note(self, name: Any, inner: Any) -> None:
        match name, inner:
            case ("properties", dict()):
                self.add("properties", len(inner))
            case ("enum", list()):
                self.add("enum_members", len(inner))
            case ("patternProperties", dict()):
                self.add("patterns", len(inner))
                for pattern in inner:
                    self._note_pattern(str(pattern))
            case ("pattern", str()):
                self.add("patterns")
                self._note_pattern(inner)
            case _:
                pass  # no keyword whose work grows with what it holds

    def _note_pattern(self, pattern: str) -> None:
        bounds = self._bounds
        if len(pattern) > bounds.pattern_characters:
            words = "characters in one pattern"
            raise bounds.too_large(self._what, "pattern_characters", words)
        self.add("patterns_characters", len(pattern))
