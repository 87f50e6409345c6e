"""JSON as PostgreSQL's jsonb gives it back with the same numbers.

jsonb holds a number as its decimal digits: `6e23` comes back as an integer of 24 digits, which no
64 bits hold. Written with `.0`, it comes back as the float that it was.
"""

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

_MAY_HAVE = re.compile(rb"[0-9][eE]\+?[0-9]")
_TEXT_OR_LARGE = re.compile(
    rb'"(?:[^"\\]++|\\.)*+"|-?[0-9]++(?:\.[0-9]++)?+[eE]\+?[0-9]++', re.DOTALL
)


def for_jsonb(written: bytes) -> bytes:
    """Return JSON with its large floats as digits with a fraction."""
    if _MAY_HAVE.search(written) is None:
        return written
    return _TEXT_OR_LARGE.sub(_as_digits, written)


def dump_jsonb(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """Return a value as JSON for jsonb; `default` makes JSON of what else is in it."""
    return for_jsonb(json.dumps(value, default=default).encode()).decode()


def _as_digits(found: re.Match[bytes]) -> bytes:
    text = found.group()
    if text.startswith(b'"'):
        return text
    digits = f"{Decimal(text.decode()):f}"
    return (digits if "." in digits else f"{digits}.0").encode()
