"""Chooses the columns of a table that must be read."""

from collections import Counter
from collections.abc import Sequence

from promptstack.services.errors import InvalidInput
from promptstack.services.sources.reading import Reading
from promptstack.services.sources.records import ID_NAMES, MESSAGES, TEXT_NAMES
from promptstack.services.sources.templates import Template

SHOWN = 20


def wanted_columns(name: str, columns: Sequence[str], reading: Reading) -> list[str]:
    """Return those of `columns` that must be read, in their order. Raises `InvalidInput`.

    `name` is what the table is called in the error.
    """
    template = Template.of(reading)
    filled = [] if template is None else template.names
    kept = columns if reading.columns is None else reading.columns
    named = [*filled, *(reading.columns or ())]
    named += [column for column in (reading.text_column, reading.id_column) if column is not None]
    missing = next((column for column in named if column not in columns), None)
    if missing is not None:
        raise InvalidInput(f"{name} has no column '{missing}'; it has {_listed(columns)}.")
    texts = {reading.text_column} if reading.text_column else {*TEXT_NAMES, MESSAGES}
    whole_text_needed = reading.template is None or reading.chunk_tokens is not None
    if whole_text_needed and texts.isdisjoint(columns):
        raise InvalidInput(
            f"{name} has no column 'text', 'prompt' or 'messages'; it has {_listed(columns)}. "
            "Say which one has the text (--text-column)."
        )
    ids = {reading.id_column} if reading.id_column else set(ID_NAMES)
    needed = {*filled, *kept, *texts, *ids}
    wanted = [column for column in columns if column in needed]
    _check_names(name, wanted)
    return wanted


def _check_names(name: str, columns: Sequence[str]) -> None:
    """Check the names that are wanted; others may be anything."""
    if not all(column.strip() for column in columns):
        raise InvalidInput(f"{name} has a column without a name; give it one.")
    twice = next((column for column, count in Counter(columns).items() if count > 1), None)
    if twice is not None:
        raise InvalidInput(
            f"{name} has two columns '{twice}'; rename one, or name those to keep (--columns)."
        )


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(columns[:SHOWN])
    return shown if len(columns) <= SHOWN else f"{shown} and {len(columns) - SHOWN} more"
