"""Texts made of a record's fields."""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from services.errors import InvalidInput
from services.sources.reading import BadRecord, Fault

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[^{}]+|[{}]")


class Template:
    """A text with `{name}` for fields of a record; `{{` and `}}` stand for braces.

    Nothing else that `str.format` knows is taken. A template may come from a stranger, and
    `{x.__class__}` would read what is no field of the record.
    """

    def __init__(self, template: str) -> None:
        self._pieces: list[tuple[str, str | None]] = []
        """Each a text and the name of the field that follows it."""
        literal = ""
        for piece in _PIECE.finditer(template):
            found, name = piece.group(), piece.group(1)
            if name is not None:
                self._pieces.append((literal, _checked_name(name)))
                literal = ""
            elif found in {"{", "}"}:
                raise InvalidInput(
                    f"The template has a single '{found}' at character {piece.start() + 1}; "
                    f"write '{found * 2}' for the character itself."
                )
            else:
                literal += found[0] if found in {"{{", "}}"} else found
        self._pieces.append((literal, None))

    @property
    def names(self) -> list[str]:
        """The fields it needs, each once, in order."""
        return list(dict.fromkeys(name for _, name in self._pieces if name is not None))

    def render(self, fields: Mapping[str, Any]) -> str:
        """Fill in the fields: strings as they are, other values as JSON. Raises `BadRecord`."""
        parts = []
        for literal, name in self._pieces:
            parts.append(literal)
            if name is not None:
                parts.append(_as_text(fields.get(name), name))
        return "".join(parts)


def _checked_name(name: str) -> str:
    if not name:
        raise InvalidInput("The template has '{}' without a name; name a field of the record.")
    if any(sign in name for sign in ".[]!:"):
        raise InvalidInput(
            f"The template has '{{{name}}}'; only names of fields stand in braces, without "
            "attributes, indexes, conversions and formats."
        )
    return name


def _as_text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise BadRecord(
            Fault.MISSING_FIELD, f"The field '{name}' is not there, and the template needs it."
        )
    try:
        return orjson.dumps(value).decode()
    except TypeError as error:
        raise BadRecord(
            Fault.WRONG_TYPE, f"The field '{name}' can't be written into the template."
        ) from error
