"""Reads records from Python: strings and mappings."""

from collections.abc import Iterator, Mapping
from typing import Any

from promptstack.services.sources.plain import as_fields
from promptstack.services.sources.reading import BadInput, BadRecord, Fault, Input
from promptstack.services.sources.records import RecordCheck, kind_of


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
