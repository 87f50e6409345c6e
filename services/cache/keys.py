"""Keys of cached calls: the function's name and its arguments, for a person to read."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from functools import cached_property
from hashlib import blake2b
from string import Formatter
from typing import Any
from uuid import UUID

MAX_KEY_CHARACTERS = 200
"""A longer key is cut, and ends in a hash of the whole."""
HASH_BYTES = 16
NOT_IN_KEYS = ("self", "cls")


class CallKeys:
    """Makes the key of each call of one function.

    It is the same however the arguments are passed: by position, by name, or left out where they
    have that default.
    """

    def __init__(
        self, function: Callable[..., Any], template: str | None, ignore: Collection[str]
    ) -> None:
        """Take the `template` of the key, such as `user:{user_id}`, or else name all arguments.

        Raises `TypeError` where `template` or `ignore` names no argument.
        """
        self._function = function
        self._template = template
        self._ignore = {*ignore, *NOT_IN_KEYS}
        asked = {name for _, name, _, _ in Formatter().parse(template or "") if name is not None}
        unknown = sorted({*asked, *ignore} - set(self._signature.parameters))
        if unknown:
            raise TypeError(f"{function.__qualname__} has no argument {', '.join(unknown)}.")

    @cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self._function)

    def of(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> str:
        """The key of a call. Raises `TypeError` for an argument that has no stable form."""
        bound = self._signature.bind(*arguments, **named)
        bound.apply_defaults()
        if self._template is not None:
            used = {name: _Rendered(value) for name, value in bound.arguments.items()}
            return shortened(self._template.format_map(used))
        shown = ",".join(
            f"{name}={render(value)}"
            for name, value in bound.arguments.items()
            if name not in self._ignore
        )
        module = self._function.__module__.removeprefix("promptstack.")
        return shortened(f"{module}.{self._function.__qualname__}({shown})")


class _Rendered:
    """An argument in a template: rendered only if the template asks for it."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __format__(self, _: str) -> str:
        return self._value if type(self._value) is str else render(self._value)


def shortened(key: str) -> str:
    """The key, cut where it is too long; two long keys stay two."""
    if len(key) <= MAX_KEY_CHARACTERS and key.isprintable():
        return key
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).hexdigest()
    shown = "".join(character for character in key if character.isprintable())
    return f"{shown[: MAX_KEY_CHARACTERS - 2 * HASH_BYTES - 1]}~{digest}"


def render(value: Any) -> str:  # noqa: PLR0911 - one for each type
    """An argument as text: equal values look the same in every process, and others differ.

    Raises `TypeError` for an object whose text would not be stable.
    """
    match value:
        case Enum():
            return f"{type(value).__qualname__}.{value.name}"
        case None | bool() | int() | float() | str() | bytes():
            return repr(value)
        case datetime():
            return (value.astimezone(UTC) if value.tzinfo else value).isoformat()
        case Decimal() | UUID() | date():
            return str(value)
        case list() | tuple():
            return f"[{','.join(map(render, value))}]"
        case set() | frozenset():
            return f"{{{','.join(sorted(map(render, value)))}}}"
        case Mapping():
            pairs = sorted((render(key), render(one)) for key, one in value.items())
            return f"{{{','.join(f'{key}:{one}' for key, one in pairs)}}}"
        case _ if is_dataclass(value) and not isinstance(value, type):
            shown = (
                f"{field.name}={render(getattr(value, field.name))}" for field in fields(value)
            )
            return f"{type(value).__qualname__}({','.join(shown)})"
        case _:
            raise TypeError(
                f"An argument of type {type(value).__qualname__} can't be part of a cache key, as "
                "its text is not stable; leave it out by ignore=, or give key=."
            )
