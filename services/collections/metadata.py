"""What a caller says of a document, for filters."""

import json
from collections.abc import Mapping
from typing import Any

from promptstack.repositories.wire_values import dump_jsonb
from promptstack.services.errors import InvalidInput
from promptstack.services.text import check_storable_json


def checked_metadata(metadata: Any, max_bytes: int) -> str | None:
    """Metadata as JSON for jsonb; None where nothing is said. Raises `InvalidInput`."""
    if metadata is None:
        return None
    if not isinstance(metadata, Mapping):
        raise InvalidInput("The metadata must be an object: names with their values.")
    check_storable_json(dict(metadata), "The metadata")
    try:
        written = dump_jsonb(dict(metadata))
    except (TypeError, ValueError) as error:
        raise InvalidInput("The metadata must be JSON.") from error
    size = len(written.encode())
    if size > max_bytes:
        raise InvalidInput(
            f"The metadata has {size:,} bytes as JSON; at most {max_bytes:,} are accepted "
            "(MAX_METADATA_BYTES)."
        )
    return written


def read_condition(written: str | None) -> dict[str, Any]:
    """A condition on metadata that was given as JSON. Raises `InvalidInput`."""
    if written is None:
        return {}
    try:
        condition = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise InvalidInput('The condition must be JSON, such as {"lang": "fr"}.') from error
    if not isinstance(condition, dict):
        raise InvalidInput('The condition must be an object, such as {"lang": "fr"}.')
    check_storable_json(condition, "The condition")
    return condition
