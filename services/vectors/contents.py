"""What is asked for, by its content: the same input of the same user is paid for once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from promptstack.services.documents.vectors import vector_key
from promptstack.services.llm.packing import EmbeddingInput


@dataclass(frozen=True)
class Wanted:
    """One content, and where it stands among the inputs: the same may come several times."""

    hash: bytes
    positions: tuple[int, ...]
    text: EmbeddingInput


def content_key(one: EmbeddingInput, owner: UUID | None, dimensions: int | None) -> bytes:
    """Return the key of an input's vector. A text has that of a chunk or a query with this text."""
    if isinstance(one, str):
        written = one.encode()
    else:
        # No text begins with this byte.
        written = b"\xff" + b",".join(b"%d" % token for token in one)
    return vector_key(hashlib.sha256(written).digest(), owner, dimensions)


def wanted_of(
    inputs: Sequence[EmbeddingInput], owner: UUID | None, dimensions: int | None
) -> list[Wanted]:
    """Return each content once, in the order in which they come first."""
    places: dict[EmbeddingInput, list[int]] = {}
    for place, one in enumerate(inputs):
        places.setdefault(one, []).append(place)
    return [
        Wanted(content_key(one, owner, dimensions), tuple(found), one)
        for one, found in places.items()
    ]


def shares(total: int | None, estimates: Sequence[int]) -> list[int | None]:
    """Share the tokens of a call between its inputs, by their estimates: the sum stays the same."""
    if total is None:
        return [None] * len(estimates)
    weights = [max(1, estimate) for estimate in estimates]
    whole, given, sent = sum(weights), 0, 0
    found: list[int | None] = []
    for weight in weights:
        given += weight
        upto = (2 * total * given + whole) // (2 * whole)  # rounded
        found.append(upto - sent)
        sent = upto
    return found
