"""JSON read and written with its values unchanged (docs/values.md has the rule).

orjson does it, and Python's json where an integer needs more than 64 bits.
"""

import json
import re
import sys
from collections import Counter
from typing import Any

import orjson

from promptstack.services.errors import InvalidInput
from promptstack.services.text import MAX_INTEGER_BITS

TOO_LARGE = "Integer exceeds 64-bit range"
"""The message of orjson for such an integer. What else it refuses is refused."""
LARGEST = 2.0**63
"""From here on, a float of orjson may have been an integer."""
MOST_DIGITS = 310
"""Of an integer of `MAX_INTEGER_BITS`, with its sign. Python reads none of thousands of digits."""
OTHER_COLON = re.compile(rb":(?<=[ \t\r\n]:)")
"""A colon after white space: it stands apart from its name, or in a text."""


class NotExact(InvalidInput):
    """The JSON has a value that can't be kept unchanged."""

    def __init__(self, reason: str, rest: Any = None) -> None:
        super().__init__(reason)
        self.rest = rest
        """The value, with `Lost` in place of what can't be kept. None if it was not read."""

    @property
    def field(self) -> str | None:
        """The field with that value. It is no part of the message: names may be content."""
        fields = self.rest if isinstance(self.rest, dict) else {}
        return next((name for name, value in fields.items() if _has_lost(value)), None)


class Lost:
    """Stands for a value that can't be kept."""


def dump_json(value: Any, *, sort_keys: bool = False, newline: bool = False) -> bytes:
    """Return a value as JSON in UTF-8 with exact numbers. Arrays of numpy become lists.

    Raises `TypeError` for a value that JSON can't hold.
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
    """Read JSON in UTF-8. Raises `json.JSONDecodeError`, and `NotExact`, which names `what`.

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
    """Whether orjson has surely lost nothing: it rounds large integers and drops repeated names."""
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
    # With as many colons as names, no name stands twice. Texts can only add colons.
    if names == text.count(b":"):
        return True
    return names == text.count(b'":') and OTHER_COLON.search(text) is None


def load_exactly(text: str, what: str, *, last_name_wins: bool = False) -> Any:
    """Do what `load_json` does. `last_name_wins` allows an object that has a name twice."""
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
    # Who has a value of numpy's has imported it.
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return value.tolist()
    raise TypeError(f"JSON has no {type(value).__name__}")
