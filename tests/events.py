"""What a client of Server-Sent Events reads."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sent:
    """One event, or a comment."""

    id: str = ""
    kind: str = ""
    data: Any = None
    comment: str = ""


def read_events(lines: Iterable[str]) -> Iterator[Sent]:
    """Read events off the lines of an answer, as browsers do."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            yield Sent(comment=line[1:].strip())
        elif line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif fields:
            if "data" in fields:
                yield Sent(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}
