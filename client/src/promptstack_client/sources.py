"""Where the items of a run come from: few stand in the request, many are sent as a file."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pydantic_core

from promptstack_client.uploads import Upload

Item = str | Mapping[str, Any]
Items = Iterable[Item] | Path
"""Prompts or texts, or objects with them; or a file: JSON Lines, CSV, Parquet, plain lines."""
MOST_IN_MEMORY = 500_000
"""Bytes of items that stand in the request itself."""


def body_of(items: Items | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Asked` that send the items: each is read once, and never are all in memory."""
    given = {name: value for name, value in options.items() if value is not None}
    if items is None:
        return {"body": given}
    if isinstance(items, Path):
        return {"upload": Upload(items.open("rb"), items.name, given)}
    if isinstance(items, str | bytes | Mapping):
        raise TypeError(f"Items are a list, or something to go through, and no {_kind(items)}.")
    few: list[Item] = []
    size = 0
    rest = iter(items)
    for item in rest:
        few.append(item)
        size += len(pydantic_core.to_json(item))
        if size > MOST_IN_MEMORY:
            return {"upload": Upload(_file_of(few, rest), "items.jsonl", given)}
    return {"body": {"items": few, **given}}


def _file_of(*groups: Iterable[Item]) -> BinaryIO:
    """The items in a temporary file: they may be slow to come, and can be read once only."""
    file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - the upload closes it
    for group in groups:
        for item in group:
            line = {"text": item} if isinstance(item, str) else item
            file.write(pydantic_core.to_json(line) + b"\n")
    return file


def _kind(items: object) -> str:
    return type(items).__name__
