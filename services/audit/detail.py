"""The detail of an audit entry: few fields with small values, and never content or a secret."""

import json
import math
from collections.abc import Mapping
from typing import Any

from promptstack.services.text import make_storable

FIELDS = frozenset(
    {
        "after",
        "before",
        "changed",
        "count",
        "day_usd",
        "error_code",
        "expires_at",
        "filter",
        "forever_usd",
        "key_name",
        "kind",
        "method",
        "models",
        "month_usd",
        "name",
        "owner_id",
        "previous_until",
        "process",
        "providers",
        "reason",
        "requests_a_minute",
        "role",
        "rules",
        "scope",
        "scopes",
        "session_id",
        "sessions",
        "settings",
        "state",
        "tier",
        "to_user_id",
        "version",
    }
)
"""All fields that an entry may have. Before you add one, make sure that no prompt, answer,
password, token or key can stand in it."""
MAX_TEXT = 200
MAX_VALUES = 100
MAX_DEPTH = 4
MAX_BYTES = 8_000


def checked_detail(detail: Mapping[str, Any]) -> dict[str, Any]:
    """The detail as it is stored: long values are cut, as what they describe has happened.

    Raises `ValueError` for a field that is not allowed: that is a mistake in the code.
    """
    unknown = sorted(set(detail) - FIELDS)
    if unknown:
        raise ValueError(f"The audit log knows no field {', '.join(unknown)}; see FIELDS.")
    short = {name: _short(value) for name, value in detail.items()}
    size = len(json.dumps(short, ensure_ascii=False).encode())
    return short if size <= MAX_BYTES else {"left_out": sorted(short), "bytes": size}


def _short(value: Any, depth: int = 0) -> Any:
    match value:
        case None | bool() | int():
            return value
        case float() if math.isfinite(value):
            return value
        case Mapping() | list() | tuple() | set() | frozenset() if depth == MAX_DEPTH:
            return "..."
        case Mapping():
            some = list(value.items())[:MAX_VALUES]
            return {_text(str(key)): _short(one, depth + 1) for key, one in some}
        case list() | tuple() | set() | frozenset():
            ordered = sorted(value, key=str) if isinstance(value, set | frozenset) else value
            return [_short(one, depth + 1) for one in list(ordered)[:MAX_VALUES]]
        case _:
            return _text(str(value))


def _text(text: str) -> str:
    text = make_storable(text)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."
