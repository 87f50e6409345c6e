"""Reads records from Python, and turns values that JSON lacks into JSON."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
from pydantic import BaseModel

from promptstack.services.sources.reading import BadInput, BadRecord, Fault, Input
from promptstack.services.sources.records import RecordCheck, kind_of
from promptstack.services.text import shown_name


def read_iterable(source: Any, check: RecordCheck) -> Iterator[Input | BadInput]:
    """Read strings, each a text, and mappings, each a record."""
    for position, item in enumerate(source, 1):
        try:
            yield check(position, _record(item, check.first_text_name))
        except BadRecord as bad:
            yield BadInput(position, check.own_id(item), bad.fault, str(bad))
        except RecursionError:
            reason = "The record is nested too deep, or holds itself."
            yield BadInput(position, None, Fault.WRONG_TYPE, reason)


def _record(item: Any, text_name: str) -> dict[str, Any]:
    if isinstance(item, str):
        return {text_name: item}
    if not isinstance(item, Mapping):
        raise BadRecord(
            Fault.WRONG_TYPE, f"A record must be a string or a mapping, and is {kind_of(item)}."
        )
    return as_fields((_name(name), value) for name, value in item.items())


def _name(name: Any) -> str:
    if isinstance(name, str):
        return name
    raise BadRecord(Fault.WRONG_TYPE, f"A field's name must be a string, and is {kind_of(name)}.")


PLAIN = frozenset({str, int, bool, type(None)})


def _object(value: Mapping[Any, Any]) -> dict[str, Any]:
    made = {_key(name): as_json(part) for name, part in value.items()}
    if len(made) < len(value):
        raise BadRecord(Fault.CONFLICT, "two names in one object are the same as text.")
    return made


def _key(name: Any) -> str:
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
