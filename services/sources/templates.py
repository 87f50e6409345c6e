"""Fills the fields of a record into a template."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

from promptstack.services.errors import InvalidInput
from promptstack.services.sources.reading import BadRecord, Fault, Reading, SourceBounds
from promptstack.services.validation.json_text import dump_json

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[^{}]+|[{}]")


class Template:
    """A text with `{name}` for fields of a record; `{{` and `}}` stand for braces.

    Nothing else that `str.format` knows is taken. A template may come from a stranger, and
    `{x.__class__}` would read what is no field of the record.
    """

    def __init__(
        self,
        template: str,
        *,
        max_bytes: int = Reading.max_bytes,
        bounds: SourceBounds = Reading.bounds,
    ) -> None:
        """Parse the template; `max_bytes` bounds its results. Raises `InvalidInput`."""
        if len(template.encode("utf-8", "surrogatepass")) > bounds.template_bytes:
            raise InvalidInput(
                f"The template has more than {bounds.template_bytes:,} bytes (MAX_TEMPLATE_BYTES); "
                "shorten it."
            )
        self._max_bytes = max_bytes
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
        if len(self._pieces) - 1 > bounds.template_places:
            raise InvalidInput(
                f"The template names fields in more than {bounds.template_places:,} places "
                "(MAX_TEMPLATE_PLACES); name some once."
            )
        self._places = Counter(name for _, name in self._pieces if name is not None)
        self._literal_bytes = sum(_bytes(literal) for literal, _ in self._pieces)

    @classmethod
    def of(cls, reading: Reading) -> Self | None:
        """Return the template of a reading, if it has one. Raises `InvalidInput`."""
        if reading.template is None:
            return None
        return cls(reading.template, max_bytes=reading.max_bytes, bounds=reading.bounds)

    @property
    def names(self) -> list[str]:
        """The names of its fields, each once, in order."""
        return list(self._places)

    def render(self, fields: Mapping[str, Any]) -> str:
        """Fill in the fields: strings as they are, other values as JSON. Raises `BadRecord`.

        How long it will be is computed first, so that no more than that is ever held.
        """
        filled = {name: _as_text(fields.get(name), name) for name in self._places}
        size = self._literal_bytes
        size += sum(places * _bytes(filled[name]) for name, places in self._places.items())
        if size > self._max_bytes:
            raise BadRecord(
                Fault.TOO_LONG,
                f"The template filled in has {size:,} UTF-8 bytes; at most {self._max_bytes:,} are "
                "accepted.",
            )
        parts = []
        for literal, name in self._pieces:
            parts.append(literal)
            if name is not None:
                parts.append(filled[name])
        return "".join(parts)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


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
        return dump_json(value).decode()
    except TypeError as error:
        raise BadRecord(
            Fault.WRONG_TYPE, f"The field '{name}' can't be written into the template."
        ) from error
