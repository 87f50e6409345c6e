"""Writes cached values as JSON, and reads them back with their types. Nothing is ever executed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import orjson
from pydantic import BaseModel

TAG, VALUE = "$", "v"
LARGEST_INTEGER = 2**63 - 1
MAX_DEPTH = 50


class NotCacheable(TypeError):
    """A value is of a type that the cache could not give back as it was."""


class Unreadable(ValueError):
    """An entry was not written by this version of the program."""


class Codec:
    """Values as JSON. What JSON lacks is an object with the name of its type in `$`.

    Dataclasses, pydantic models and enums are read back only where their class was named here: an
    entry in Redis never decides which class is made.
    """

    def __init__(self, classes: Sequence[type[Any]] = ()) -> None:
        self._classes = {kind.__qualname__: kind for kind in classes}
        if len(self._classes) < len(classes):
            raise ValueError("Two classes of cached values have the same name.")

    def dump(self, value: Any) -> bytes:
        """Write a value. Raises `NotCacheable`."""
        try:
            return orjson.dumps(self._plain(value, 0))
        except orjson.JSONEncodeError as error:
            raise NotCacheable(f"The value can't be written as JSON: {error}.") from error

    def load(self, text: bytes | str) -> Any:
        """Read a value. Raises `Unreadable`."""
        try:
            return self._read(orjson.loads(text))
        except (ValueError, TypeError, KeyError, ArithmeticError, AttributeError) as error:
            raise Unreadable("The cached entry can't be read.") from error

    def _plain(self, value: Any, depth: int) -> Any:  # noqa: PLR0911 - one for each type
        kind = type(value)
        if depth > MAX_DEPTH:
            raise NotCacheable(f"The value is nested more than {MAX_DEPTH} levels deep.")
        if value is None or kind in {bool, str}:
            return value
        if kind is int:
            return value if abs(value) <= LARGEST_INTEGER else _tagged("int", str(value))
        if kind is float:
            return value if math.isfinite(value) else _tagged("float", str(value))
        if kind is list:
            return [self._plain(one, depth + 1) for one in value]
        if kind is dict:
            return self._plain_dict(value, depth)
        if kind in WRITERS:
            return _tagged(kind.__name__, WRITERS[kind](value))
        if kind in {tuple, set, frozenset}:
            return _tagged(kind.__name__, [self._plain(one, depth + 1) for one in value])
        if self._classes.get(kind.__qualname__) is not kind:
            raise NotCacheable(
                f"{kind.__module__}.{kind.__qualname__} is no type that the cache gives back as it "
                "was; name the class where the cache is made."
            )
        inner = value.value if isinstance(value, Enum) else _fields(value)
        return _tagged(f"class {kind.__qualname__}", self._plain(inner, depth + 1))

    def _plain_dict(self, value: Mapping[Any, Any], depth: int) -> Any:
        if all(type(key) is str for key in value) and TAG not in value:
            return {key: self._plain(one, depth + 1) for key, one in value.items()}
        pairs = [
            [self._plain(key, depth + 1), self._plain(one, depth + 1)] for key, one in value.items()
        ]
        return _tagged("dict", pairs)

    def _read(self, value: Any) -> Any:  # noqa: PLR0911 - one for each type
        if isinstance(value, list):
            return [self._read(one) for one in value]
        if not isinstance(value, dict):
            return value
        if TAG not in value:
            return {key: self._read(one) for key, one in value.items()}
        tag, inner = value[TAG], value[VALUE]
        if tag in READERS:
            return READERS[tag](inner)
        inner = self._read(inner)
        if tag in COLLECTIONS:
            return COLLECTIONS[tag](inner)
        kind = self._classes[tag.removeprefix("class ")]
        if issubclass(kind, Enum):
            return kind(inner)
        return kind.model_validate(inner) if issubclass(kind, BaseModel) else kind(**inner)


def _tagged(tag: str, value: Any) -> dict[str, Any]:
    return {TAG: tag, VALUE: value}


def _fields(value: Any) -> dict[str, Any]:
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields}
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    raise NotCacheable(f"{type(value).__qualname__} is no dataclass, pydantic model or enum.")


WRITERS: Mapping[type[Any], Callable[[Any], Any]] = {
    datetime: datetime.isoformat,
    date: date.isoformat,
    timedelta: lambda span: [span.days, span.seconds, span.microseconds],
    Decimal: str,
    UUID: str,
    bytes: bytes.hex,
}
READERS: Mapping[str, Callable[[Any], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "timedelta": lambda parts: timedelta(*parts),
    "Decimal": Decimal,
    "UUID": UUID,
    "bytes": bytes.fromhex,
    "int": int,
    "float": float,
}
COLLECTIONS: Mapping[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": lambda pairs: {key: one for key, one in pairs},  # noqa: C416 - pairs are lists
}
