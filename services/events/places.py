"""Events, and how far a reader has come in them: the id of each event says it."""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from promptstack.services.errors import InvalidInput
from promptstack.services.streams.pieces import Position

ID_PATTERN = r"([0-9a-f]{12}|-)\.([0-9]{1,20}(?:-[0-9]{1,20})?)"
"""Of an id, for those who check it before."""


@dataclass(frozen=True)
class Place:
    """How far a reader has come."""

    shown: str = ""
    """The digest of the newest state it has seen."""
    position: str = "0"
    """In the text of the job, where it streams."""

    def __str__(self) -> str:
        return f"{self.shown or '-'}.{self.position}"

    @classmethod
    def read(cls, event_id: str) -> Self:
        """The place that an event's id says. Raises `InvalidInput` where it is none of ours."""
        found = re.fullmatch(ID_PATTERN, event_id)
        if found is None:
            raise InvalidInput(
                "This is no id of an event here. Send the `id` of the last event that you got, or "
                "none to begin anew."
            )
        shown, position = found.groups()
        Position.parse(position)
        return cls("" if shown == "-" else shown, position)


@dataclass(frozen=True)
class Event:
    """One thing that has happened."""

    kind: str
    """`state` or `progress`, `text`, `restart`, `end`."""
    data: str
    """JSON, in one line."""
    place: Place
    """How far a reader is who has it; as text, the event's id."""
    look: "Look | None" = None
    """Whose data it is, where many are told the same."""

    @property
    def encoded(self) -> bytes:
        """The data as it is sent; made once for all who are told the same."""
        return self.data.encode() if self.look is None else self.look.encoded


@dataclass(frozen=True)
class Look:
    """What there is to see of a job or run at one moment."""

    kind: str
    data: str
    """JSON, in one line."""
    state: str
    is_final: bool
    text: str | None = None
    """Of the end of a generation: its answer."""
    attempt: int = 0
    """Which attempt has produced it."""

    @cached_property
    def encoded(self) -> bytes:
        """The data as it is sent. A slow reader holds it for as long as it reads."""
        return self.data.encode()

    @cached_property
    def digest(self) -> str:
        """What it is known by in ids: twelve digits."""
        return hashlib.blake2b(self.encoded, digest_size=6).hexdigest()
