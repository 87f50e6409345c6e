"""JSON as bytes: by orjson, and by Python where an integer needs more than 64 bits."""

import json
from typing import Any

import numpy as np
import orjson

TOO_LARGE = "Integer exceeds 64-bit range"
"""How orjson says it; whatever else it refuses is refused."""


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


def _plain(value: object) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"JSON has no {type(value).__name__}")
