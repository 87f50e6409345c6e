"""JSON in and out with its values as they are (docs/values.md has the rule).

By orjson where that keeps them, and by Python where an integer needs more than 64 bits.
"""

import json
import re
from collections import Counter
from typing import Any

import numpy as np
import orjson

from promptstack.services.errors import InvalidInput
from promptstack.services.text import MAX_INTEGER_BITS

TOO_LARGE = "Integer exceeds 64-bit range"
"""How orjson says it; whatever else it refuses is refused."""
LARGEST = 2.0**63
"""From here on, orjson may have made a float of an integer."""
MOST_DIGITS = 310
"""Of an integer of `MAX_INTEGER_BITS`, with its sign. Python takes none of thousands apart."""
OTHER_COLON = re.compile(rb":(?<=[ \t\r\n]:)")
"""One that stands apart from the name before it, or in a text."""


class NotExact(InvalidInput):
    """The JSON has something that can't be kept as it is."""

    def __init__(self, reason: str, rest: Any = None) -> None:
        super().__init__(reason)
        self.rest = rest
        """What it holds, with `Lost` in the place of what can't be kept; None if not read."""

    @property
    def field(self) -> str | None:
        """Which field of an object it is. No part of the reason: names may be content."""
        fields = self.rest if isinstance(self.rest, dict) else {}
        return next((name for name, value in fields.items() if _has_lost(value)), None)


class Lost:
    """What can't be kept as it is."""


def dump_json(value: Any, *, sort_keys: bool = False, newline: bool = False) -> bytes:
    """Return a value as JSON in UTF-8, its numbers exactly as they are; arrays of numpy are lists.

    Raises `TypeError` for what JSON can't hold.
    """
    options = orjson.OPT_SERIALIZE_NUMPY
    options |= orjson.OPT_SORT_KEYS if sort_keys else 0
    options |= orjson.OPT_APPEND_NEWLINE if newline else 0
    try:
        return orjson.dumps(value, option=options)
    except TypeError as error:
        if TOO_LARGE not in str(error):
            raise
    text = json.dumps(
        value,
        sort_keys=sort_keys,
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
        default=_plain,
    )
    return text.encode() + (b"\n" if newline else b"")


def load_json(text: bytes, what: str) -> Any:
    """Read JSON in UTF-8. Raises `json.JSONDecodeError`, and `NotExact`, which calls it `what`.

    Not exact are a number that a double can't hold or with too many digits, `NaN` and the like,
    a name that an object has twice, and nesting without end. Half of a surrogate pair is taken.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        try:
            return load_exactly(text.decode(), what)
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise error from None
    return value if _is_exact(value, text) else load_exactly(text.decode(), what)


def _is_exact(value: Any, text: bytes) -> bool:
    """Whether orjson has surely lost nothing: it rounds large integers, and a name's last wins."""
    names = 0
    level: list[Any] = [[value]]
    while level:
        below = []
        for holder in level:
            names += len(holder) if type(holder) is dict else 0
            for part in holder.values() if type(holder) is dict else holder:
                kind = type(part)
                if kind is dict or kind is list:
                    below.append(part)
                elif kind is float and not 0 < abs(part) < LARGEST:
                    return False
        level = below
    # Where there are no more colons than names, no name stands twice. Texts only add to them.
    if names == text.count(b":"):
        return True
    return names == text.count(b'":') and OTHER_COLON.search(text) is None


def load_exactly(text: str, what: str, *, last_name_wins: bool = False) -> Any:
    """Do as `load_json` does; `last_name_wins` takes objects that have a name twice."""
    faults: list[str] = []

    def lost(why: str) -> Any:
        faults.append(why)
        return Lost()

    def integer(digits: str) -> Any:
        if len(digits) > MOST_DIGITS or (number := int(digits)).bit_length() > MAX_INTEGER_BITS:
            return lost("a number with too many digits.")
        return number

    def fraction(digits: str) -> Any:
        number = float(digits)
        if abs(number) == float("inf") or (
            number == 0 and digits.lower().split("e")[0].strip("-0.")
        ):
            return lost("a number outside of what a double holds, 5e-324 to 1.8e308.")
        return number

    def whole(members: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(members)
        if len(made) < len(members) and not last_name_wins:
            twice = lost("a name twice in one object, of which one would get lost; rename it.")
            made |= {
                name: twice for name, times in Counter(n for n, _ in members).items() if times > 1
            }
        return made

    try:
        value = json.loads(
            text,
            parse_int=integer,
            parse_float=fraction,
            parse_constant=lambda name: lost(f"{name}, which JSON doesn't know."),
            object_pairs_hook=whole,
        )
    except RecursionError as error:
        raise NotExact(f"{what} has lists or objects that are nested too deep.") from error
    if faults:
        raise NotExact(f"{what} has {faults[0]}", value)
    return value


def _has_lost(value: Any) -> bool:
    level = [value]
    while level:
        below: list[Any] = []
        for part in level:
            if isinstance(part, Lost):
                return True
            if isinstance(part, dict | list):
                below += part.values() if isinstance(part, dict) else part
        level = below
    return False


def _plain(value: object) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"JSON has no {type(value).__name__}")
