"""What a caller says of a new batch, checked before anything is stored."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from promptstack.repositories.run_models import RunKind
from promptstack.services.errors import InvalidInput
from promptstack.services.files.service import FileView
from promptstack.services.llm.answers import Capability
from promptstack.services.text import check_storable

PURPOSE = "batch"
CAPABILITIES = {
    RunKind.GENERATION: Capability.GENERATION,
    RunKind.EMBEDDING: Capability.EMBEDDING,
}
"""What a model must be able to do, by the kind of a batch's run."""
MOST_PAIRS, LONGEST_KEY, LONGEST_VALUE = 16, 64, 512
"""Of metadata, as OpenAI bounds it."""
LONGEST_HOURS = 366 * 24
_WINDOW = re.compile(r"([1-9][0-9]{0,3})h")


@dataclass(frozen=True)
class BatchBounds:
    """Bounds of batches."""

    lines: int = 50_000
    """Most requests of one."""
    bytes: int = 200_000_000
    """Largest input file."""
    repeat_seconds: float = 60.0
    """How long the same request makes no second batch."""


def window_seconds(window: str) -> float:
    """Return how long a completion window is. Raises `InvalidInput`."""
    found = _WINDOW.fullmatch(window)
    if found is None or int(found[1]) > LONGEST_HOURS:
        raise InvalidInput(
            f"The completion window must be a number of hours such as 24h, up to {LONGEST_HOURS}h.",
            pointer="/completion_window",
        )
    return int(found[1]) * 3_600.0


def checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Return metadata within its bounds. Raises `InvalidInput`."""
    if metadata is None:
        return None
    if len(metadata) > MOST_PAIRS:
        raise InvalidInput(
            f"The metadata has {len(metadata)} pairs, and may have {MOST_PAIRS}.",
            pointer="/metadata",
        )
    for name, value in metadata.items():
        if not isinstance(value, str):
            raise InvalidInput("The values of metadata must be strings.", pointer="/metadata")
        if len(name) > LONGEST_KEY or len(value) > LONGEST_VALUE:
            raise InvalidInput(
                f"Names in metadata have at most {LONGEST_KEY} characters, and values at most "
                f"{LONGEST_VALUE}.",
                pointer="/metadata",
            )
        check_storable(name, "A name in metadata")
        check_storable(value, "A value in metadata")
    return dict(metadata)


def check_input(file: FileView, bounds: BatchBounds) -> None:
    """Raise `InvalidInput` for a file that can't be a batch's."""
    if file.purpose != PURPOSE:
        raise InvalidInput(
            f"The file was uploaded for {file.purpose}; upload it with the purpose {PURPOSE}.",
            pointer="/input_file_id",
        )
    if file.bytes > bounds.bytes:
        raise InvalidInput(
            f"The file has {file.bytes:,} bytes, and a batch's may have {bounds.bytes:,} "
            "(MAX_BATCH_BYTES); make several batches of it.",
            pointer="/input_file_id",
        )
