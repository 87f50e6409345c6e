"""Which text can be stored.

PostgreSQL's text and jsonb refuse NUL, and UTF-8 has no lone surrogates. A caller's text with
either is refused, not changed. A provider's answer is paid for already: its characters are
replaced, and it is kept.
"""

import math
import re
from pathlib import PurePath
from typing import Any

from pydantic import JsonValue

from promptstack.config.control_characters import CONTROLS, escaped
from promptstack.services.errors import InvalidInput

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
REPLACEMENT = "\ufffd"
MAX_JSON_DEPTH = 50
LONGEST_NAME_SHOWN = 80
MAX_INTEGER_BITS = 1_024


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can store it."""
    return _UNSTORABLE.search(text) is None


def check_storable(text: str, what: str) -> str:
    """Return `text` unchanged, or raise `InvalidInput` if PostgreSQL can't store it.

    `what` names the text in the error's sentence, which never quotes the text itself.
    """
    found = _UNSTORABLE.search(text)
    if found is None:
        return text
    name = "a NUL character" if found.group() == "\x00" else "half of a surrogate pair"
    raise InvalidInput(
        f"{what} has {name} at position {found.start()}, which cannot be stored; remove it."
    )


def check_storable_json(value: JsonValue, what: str, depth: int = 0) -> None:
    """Raise `InvalidInput` for JSON that jsonb can't hold or that is a mistake.

    That is bad text, an infinite number or one of hundreds of digits, and endless nesting.
    """
    if depth > MAX_JSON_DEPTH:
        raise InvalidInput(f"{what} is nested more than {MAX_JSON_DEPTH} levels deep.")
    match value:
        case str():
            check_storable(value, what)
        case float() if not math.isfinite(value):
            raise InvalidInput(f"{what} has a number that is not finite; JSON knows none.")
        case int() if value.bit_length() > MAX_INTEGER_BITS:
            raise InvalidInput(f"{what} has a number with too many digits.")
        case list():
            for item in value:
                check_storable_json(item, what, depth + 1)
        case dict():
            for key, item in value.items():
                check_storable(str(key), what)
                check_storable_json(item, what, depth + 1)
        case _:
            pass  # null, true, false and other numbers are fine


def check_name(name: str, what: str) -> str:
    """Return `name` unchanged, or raise `InvalidInput` if it has characters that no name has.

    Names are shown in logs, tables and messages, where a newline or a terminal command could
    imitate other output.
    """
    check_storable(name, what)
    found = CONTROLS.search(name)
    if found is not None:
        raise InvalidInput(
            f"{what} has the control character U+{ord(found.group()):04X} at position "
            f"{found.start()}; remove it."
        )
    return name


def printable_path(path: PurePath | str) -> str:
    """A path as text that can be shown and stored, even if some of its bytes are not UTF-8."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def shown_name(name: str) -> str:
    """The name of a field as text that can be shown and stored."""
    return escaped(make_storable(name))[:LONGEST_NAME_SHOWN]


def make_storable(text: str) -> str:
    """Replace what PostgreSQL can't store by U+FFFD."""
    return _UNSTORABLE.sub(REPLACEMENT, text)


def make_storable_json(value: Any) -> Any:
    """Do the same in every text of a JSON value; a number that JSON lacks becomes null."""
    match value:
        case str():
            return make_storable(value)
        case float() if not math.isfinite(value):
            return None
        case list() | tuple():
            return [make_storable_json(item) for item in value]
        case dict():
            return {make_storable(key): make_storable_json(item) for key, item in value.items()}
        case _:
            return value
