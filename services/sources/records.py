"""Checks one record of any format and makes it an input."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from types import NoneType
from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.request_turns import few_values
from promptstack.services.llm.requests import MAX_TURNS, Message, ToolCall
from promptstack.services.sources.reading import BadInput, BadRecord, Fault, Input, Reading
from promptstack.services.sources.templates import Template
from promptstack.services.text import (
    MAX_INTEGER_BITS,
    check_name,
    check_storable,
    check_storable_json,
    shown_name,
)
from promptstack.services.validation.json_text import dump_json

CONVERSATION = TypeAdapter(list[Message])
NAMES = Message.model_fields.keys() | ToolCall.model_fields.keys()


def checked_messages(value: Any, max_bytes: int) -> list[dict[str, JsonValue]]:
    """Return the messages as JSON. Raises `BadRecord`, and `InvalidInput` for text not storable."""
    if not isinstance(value, list | tuple):
        raise BadRecord(Fault.WRONG_TYPE, "The field 'messages' must be a list.")
    if not value:
        raise BadRecord(Fault.EMPTY_TEXT, "The field 'messages' is empty.")
    if len(value) > MAX_TURNS:
        raise BadRecord(Fault.TOO_LONG, f"The messages are more than {MAX_TURNS:,} turns.")
    try:
        messages = CONVERSATION.validate_python(few_values(value))
    except ValidationError as error:
        raise BadRecord(Fault.WRONG_TYPE, _reason(error)) from error
    except ValueError as error:
        raise BadRecord(Fault.TOO_LONG, f"In 'messages', {error}.") from error
    plain: list[dict[str, JsonValue]] = CONVERSATION.dump_python(
        messages, mode="json", exclude_defaults=True
    )
    if len(dump_json(plain)) > max_bytes:
        raise BadRecord(
            Fault.TOO_LONG, f"The messages have more than {max_bytes:,} bytes, written as JSON."
        )
    return plain


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # A name that we don't know is the caller's text.
    path = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in NAMES)
    said = first["msg"].removeprefix("Value error, ")
    return f"The field 'messages' is not right at '{path}': {said}."


TEXT_NAMES = ("text", "prompt")
ID_NAMES = ("custom_id", "id")
MESSAGES = "messages"
MAX_ID_BYTES = 2_000
"""The same bound as for the source of a document."""
KINDS = (
    (NoneType, "null"),
    (bool, "a boolean"),
    (str, "a string"),
    ((int, float), "a number"),
    (Mapping, "an object"),
    ((list, tuple), "a list"),
)
"""The order matters: in Python a bool is an int."""


Unfolded = tuple[dict[str, Any], Any]
"""A record of another form as an ordinary one, and what `Input.own` says. There is one for every
record of a source, so it is a plain tuple, which is made more quickly than one with names."""
Unfold = Callable[[dict[str, Any]], Unfolded]
"""Turns a record of another form into an ordinary one. Raises `BadRecord`."""


def as_it_is(record: dict[str, Any]) -> Unfolded:
    """Return an ordinary record unchanged."""
    return record, None


class RecordCheck:
    """Turns records into inputs, by the options of a `Reading`."""

    def __init__(self, reading: Reading, unfold: Unfold = as_it_is) -> None:
        self._text_names = (reading.text_column,) if reading.text_column else TEXT_NAMES
        self._own_id = reading.id_column
        self._id_names = (reading.id_column,) if reading.id_column else ID_NAMES
        self._columns = None if reading.columns is None else frozenset(reading.columns)
        self._template = Template.of(reading)
        self._takes_messages = reading.text_column is None and self._template is None
        self._unfold = unfold if self._takes_messages else as_it_is
        self._max_bytes = reading.max_bytes

    def __call__(
        self, position: int, record: dict[str, Any], *, clean: bool = False
    ) -> Input | BadInput:
        """Check a record and take its fields out of it. `clean`: its metadata needs no check."""
        custom_id = None
        try:
            id_name, own_id = self._find_id(record)
            custom_id = str(position) if own_id is None else own_id
            record, own = self._unfold(record)
            text_name = self.text_name(record)
            text, messages = self._find_text(record, text_name)
            if text_name is not None:
                del record[text_name]
            if id_name is not None:
                record.pop(id_name, None)  # it may be the text as well
            if self._columns is not None:
                record = {name: record[name] for name in record if name in self._columns}
            if not clean:
                for name, value in record.items():
                    check_storable(name, f"The field's name '{shown_name(name)}'")
                    check_storable_json(value, f"The field '{shown_name(name)}'", 1)
        except BadRecord as bad:
            return BadInput(position, custom_id, bad.fault, str(bad), bad.pointer)
        except InvalidInput as bad:
            return BadInput(position, custom_id, Fault.NOT_STORABLE, str(bad))
        return Input(position, custom_id, text, messages, record, own)

    def own_id(self, record: Any) -> str | None:
        """Return the id of a bad record, if it has a readable one."""
        with suppress(InvalidInput):
            return self._find_id(record)[1] if isinstance(record, Mapping) else None
        return None

    @property
    def first_text_name(self) -> str:
        """The field under which a plain text is put."""
        return self._text_names[0]

    @property
    def first_id_name(self) -> str:
        """The field under which an id is put that the source gives, such as a file's name."""
        return self._id_names[0]

    def text_name(self, record: dict[str, Any]) -> str | None:
        """Return the name of the field with the text, if there is one."""
        for name in self._text_names:
            if record.get(name) is not None:
                return name
        return next((name for name in self._text_names if name in record), None)

    def check_text(self, text: str) -> str:
        """Return the text. Raises `BadRecord`, and `InvalidInput` where it can't be stored."""
        if not text or text.isspace():
            raise BadRecord(Fault.EMPTY_TEXT, "The text is empty.")
        if not text.isascii() or "\x00" in text:
            check_storable(text, "The text")
        # A character has at most four bytes: most texts need no count.
        if len(text) * 4 > self._max_bytes and len(text.encode()) > self._max_bytes:
            raise BadRecord(
                Fault.TOO_LONG, f"The text has more than {self._max_bytes:,} UTF-8 bytes."
            )
        return text

    def _find_id(self, record: Mapping[str, Any]) -> tuple[str | None, str | None]:
        for name in self._id_names:
            value = record.get(name)
            if value is not None:
                return name, checked_id(value, name)
        if self._own_id is not None:
            raise BadRecord(Fault.MISSING_FIELD, f"The record has no '{self._own_id}', its id.")
        return None, None

    def _find_text(
        self, record: dict[str, Any], name: str | None
    ) -> tuple[str | None, list[dict[str, JsonValue]] | None]:
        if self._template is not None:
            return self.check_text(self._template.render(record)), None
        value = None if name is None else record[name]
        turns = record.pop(MESSAGES, None) if self._takes_messages else None
        if turns is not None:
            if value is not None:
                raise BadRecord(
                    Fault.CONFLICT, f"The record has both '{name}' and 'messages'; keep one."
                )
            return None, checked_messages(turns, self._max_bytes)
        if isinstance(value, str):
            return self.check_text(value), None
        if name is None:
            wanted = " or ".join(f"'{name}'" for name in self._text_names)
            raise BadRecord(Fault.MISSING_FIELD, f"The record has no {wanted}.")
        if value is None:
            raise BadRecord(Fault.EMPTY_TEXT, f"The field '{name}' is null.")
        raise BadRecord(
            Fault.WRONG_TYPE, f"The field '{name}' must be a string, and is {kind_of(value)}."
        )


def kind_of(value: Any) -> str:
    """Name the kind of a value as JSON does."""
    for types, name in KINDS:
        if isinstance(value, types):
            return name
    return f"a {type(value).__name__}"


def checked_id(value: Any, name: str) -> str:
    """Return an id. Raises `BadRecord`, and `InvalidInput` where it can't be stored."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > MAX_INTEGER_BITS:
            raise BadRecord(Fault.BAD_ID, f"The id '{name}' is a number with too many digits.")
        return str(value)
    if not isinstance(value, str):
        raise BadRecord(
            Fault.WRONG_TYPE,
            f"The id '{name}' must be a string or a whole number, and is {kind_of(value)}.",
        )
    if not value.isprintable():
        check_name(value, "The id")
    if not value or len(value) * 4 > MAX_ID_BYTES < len(value.encode()):
        raise BadRecord(
            Fault.BAD_ID, f"The id '{name}' must have 1 to {MAX_ID_BYTES:,} UTF-8 bytes."
        )
    return value
