"""Checks the messages of a record by the rules for a job's messages."""

from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError

from promptstack.services.llm.openai_forms import few_values
from promptstack.services.llm.requests import MAX_TURNS, Message, ToolCall
from promptstack.services.sources.reading import BadRecord, Fault
from promptstack.services.validation.json_text import dump_json

MESSAGES = TypeAdapter(list[Message])
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
        messages = MESSAGES.validate_python(few_values(value))
    except ValidationError as error:
        raise BadRecord(Fault.WRONG_TYPE, _reason(error)) from error
    except ValueError as error:
        raise BadRecord(Fault.TOO_LONG, f"In 'messages', {error}.") from error
    plain: list[dict[str, JsonValue]] = MESSAGES.dump_python(
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
