"""What a caller says of a document, for filters."""

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
