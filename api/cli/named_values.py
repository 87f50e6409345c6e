"""What people write as NAME=VALUE."""

from json import JSONDecodeError
from typing import Any

from promptstack.services.errors import InvalidInput
from promptstack.services.validation.json_text import load_exactly

SHOWN = 80


def named_value(given: str, option: str) -> tuple[str, Any]:
    """Read the name, and the value as JSON where it is some. Raises `InvalidInput`.

    It also does where the value couldn't be kept as it is.
    """
    name, equals, value = given.partition("=")
    what = f"{option} {name[:SHOWN]}"
    if not name or not equals:
        raise InvalidInput(f"{option} {given[:SHOWN]!a} is not of the form NAME=VALUE.")
    try:
        return name, load_exactly(value, what)
    except JSONDecodeError:
        return name, value
