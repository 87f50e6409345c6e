"""Python values that JSON doesn't have, as JSON."""

import base64
import math
from collections.abc import Callable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
from pydantic import BaseModel

from services.sources.reading import BadRecord, Fault

PLAIN = frozenset({str, int, bool, type(None)})
CONVERSIONS: tuple[tuple[type[Any] | tuple[type[Any], ...], Callable[[Any], Any]], ...] = (
    (Mapping, lambda value: {str(name): as_json(part) for name, part in value.items()}),
    ((list, tuple), lambda value: [as_json(part) for part in value]),
    ((np.generic, np.ndarray), lambda value: as_json(value.tolist())),
    ((date, time), lambda value: value.isoformat()),  # a datetime is a date
    (timedelta, timedelta.total_seconds),
    ((Decimal, UUID), str),
    (bytes, lambda value: base64.b64encode(value).decode()),
    (BaseModel, lambda value: value.model_dump(mode="json", exclude_defaults=True)),
    (str, str.__str__),  # of a class of its own, also an enum
    (int, int),
    (float, lambda value: as_json(float(value))),
)


def as_json(value: Any) -> Any:
    """Return a value as JSON has it: times in ISO 8601, bytes in base64. Raises `BadRecord`."""
    if type(value) in PLAIN:
        return value
    if type(value) is float:
        return None if math.isnan(value) else value  # how pandas writes that there is nothing
    for types, convert in CONVERSIONS:
        if isinstance(value, types):
            return convert(value)
    raise BadRecord(Fault.WRONG_TYPE, f"JSON has no value for a {type(value).__name__}.")
