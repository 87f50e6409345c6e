"""Turns Python values that JSON lacks into JSON."""

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
from pydantic import BaseModel

from promptstack.services.sources.reading import BadRecord, Fault
from promptstack.services.text import shown_name

PLAIN = frozenset({str, int, bool, type(None)})


def _object(value: Mapping[Any, Any]) -> dict[str, Any]:
    made = {_name(name): as_json(part) for name, part in value.items()}
    if len(made) < len(value):
        raise BadRecord(Fault.CONFLICT, "two names in one object are the same as text.")
    return made


def _name(name: Any) -> str:
    return _text(name) if isinstance(name, bytes) else str(name)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise BadRecord(
            Fault.BAD_ENCODING,
            f"it is binary and not UTF-8 (byte {value[error.start]:#04x} at {error.start + 1}); "
            "write it as text, or leave the column out (--columns).",
        ) from error


CONVERSIONS: tuple[tuple[type[Any] | tuple[type[Any], ...], Callable[[Any], Any]], ...] = (
    (Mapping, _object),
    ((list, tuple), lambda value: [as_json(part) for part in value]),
    ((np.generic, np.ndarray), lambda value: as_json(value.tolist())),
    ((date, time), lambda value: value.isoformat()),  # a datetime is a date
    (timedelta, timedelta.total_seconds),
    ((Decimal, UUID), str),
    (bytes, _text),
    (BaseModel, lambda value: value.model_dump(mode="json", exclude_defaults=True)),
    (str, str.__str__),  # also an enum or another subclass
    (int, int),
    (float, lambda value: as_json(float(value))),
)


def as_json(value: Any) -> Any:
    """Return a value as JSON: times in ISO 8601, bytes as UTF-8. Raises `BadRecord`."""
    if type(value) in PLAIN:
        return value
    if type(value) is float:
        return None if math.isnan(value) else value  # pandas writes a missing value as NaN
    for types, convert in CONVERSIONS:
        if isinstance(value, types):
            return convert(value)
    raise BadRecord(Fault.WRONG_TYPE, f"JSON has no value for a {type(value).__name__}.")


def as_fields(record: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a record with its values as JSON. Raises `BadRecord`, which names the field."""
    fields = {}
    for name, value in record:
        try:
            fields[name] = as_json(value)
        except BadRecord as bad:
            raise BadRecord(
                bad.fault, f"The field '{shown_name(name)}' can't be taken: {bad}"
            ) from bad
    return fields
