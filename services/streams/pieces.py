"""Pieces of a text, and what a reader at a position must be told of the entries after it.

An entry's id says which text it belongs to and how many characters of it are there with this
entry. So a reader sees a gap without knowing what else was written, and Redis itself, which takes
ascending ids only, refuses what a worker writes after another one has taken over its job.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import total_ordering
from typing import Literal, Self

from promptstack.services.errors import InvalidInput

ATTEMPT_BITS = 16
"""Up to 65,536 texts may begin within one attempt of a job."""
MOST_RESTARTS = (1 << ATTEMPT_BITS) - 4
"""The last ones stand for texts that are read from the ledger."""
_ALL = 2**64 - 1
_DIGITS = 20

Entry = tuple[str, Mapping[str, str]]
"""An entry of the Redis stream: its id and its fields."""


@dataclass(frozen=True)
class Piece:
    """Something that a reader of a text is told."""

    position: str
    """Where to go on after it."""
    kind: Literal["text", "restart", "end"]
    attempt: int
    """The job's attempt to which it belongs."""
    text: str = ""
    reason: str = ""
    """Why the text begins again."""


@total_ordering
@dataclass(frozen=True)
class Position:
    """How far a reader is: an id in the Redis stream."""

    number: int
    """Which text: the job's attempt, and how often a text has begun within it."""
    characters: int
    """How many characters of it the reader has."""

    @classmethod
    def of(cls, attempt: int, restarts: int, characters: int = 0) -> Self:
        """The position in the text of an attempt that has begun again `restarts` times."""
        return cls((attempt << ATTEMPT_BITS) + restarts, characters)

    @classmethod
    def parse(cls, position: str) -> Self:
        """Read a position; "0" is the beginning. Raises `InvalidInput`."""
        number, _, characters = position.partition("-")
        parts = (number, characters or "0")
        if all(part.isascii() and part.isdigit() and len(part) <= _DIGITS for part in parts):
            found = cls(*map(int, parts))
            if max(found.number, found.characters) <= _ALL:
                return found
        raise InvalidInput("This is no position in a text; give one that was sent, or none.")

    @property
    def attempt(self) -> int:
        """The attempt that wrote the text."""
        return self.number >> ATTEMPT_BITS

    def __lt__(self, other: "Position") -> bool:
        return (self.number, self.characters) < (other.number, other.characters)

    def __str__(self) -> str:
        return f"{self.number}-{self.characters}"

    def without_text(self) -> "Position":
        """After all entries of this text, which the reader can't use: it has missed some."""
        return replace(self, characters=_ALL)


START = Position(0, 0)


def read_entries(at: Position, entries: Sequence[Entry]) -> Iterator[Piece]:
    """Yield what a reader at a position must be told of the entries after it.

    Where some are missing, it is told to forget the text; all of it follows from the ledger, once
    the job has ended.
    """
    for name, fields in entries:
        here = Position.parse(name)
        text = fields.get("text", "")
        begins = here.characters == len(text)
        if "length" in fields:
            yield from _ended(at, here, int(fields["length"]))
            at = here
        elif begins and here.number != at.number:
            if at != START or not text:
                begun = str(replace(here, characters=0))
                yield Piece(begun, "restart", here.attempt, reason=fields.get("reason", ""))
            if text:
                yield Piece(str(here), "text", here.attempt, text)
            at = here
        elif (here.number, here.characters - len(text)) == (at.number, at.characters):
            yield Piece(str(here), "text", here.attempt, text)
            at = here
        elif at < here:
            at = here.without_text()
            yield _missed(at)


def _ended(at: Position, end: Position, length: int) -> Iterator[Piece]:
    """The end of the text before this entry; `length` is that of the whole text."""
    whole = Position(end.number - 1, length)
    if at != whole and not (at == START and length == 0):
        missed = whole.without_text()
        if at != missed:
            yield _missed(missed)
        if length:
            # The reader stays where it is, so that it is still known not to have the text.
            yield Piece(str(missed), "end", end.attempt)
            return
    yield Piece(str(end), "end", end.attempt)


def _missed(at: Position) -> Piece:
    return Piece(str(at), "restart", at.attempt, reason="some of the text was missed")


def from_ledger(at: Position, text: str, attempt: int) -> Iterator[Piece]:
    """Yield what a reader at a position must be told of a text that the ledger holds."""
    whole = Position.of(attempt, MOST_RESTARTS + 2, len(text))
    if at > whole:
        return  # it was told the end
    if at != whole:
        if at != START:
            yield _missed(Position.of(attempt, MOST_RESTARTS + 1).without_text())
        if text:
            yield Piece(str(whole), "text", attempt, text)
    yield Piece(str(whole.without_text()), "end", attempt)
