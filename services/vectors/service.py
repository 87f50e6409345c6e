"""Vectors as their callers get them, once the job that makes them has ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from promptstack.repositories.session import Ledger
from promptstack.services.errors import NotYet
from promptstack.services.llm.packing import EmbeddingInput
from promptstack.services.vectors.contents import content_key


@dataclass(frozen=True)
class InputVector:
    """The vector of one input."""

    vector: bytes
    """Its numbers, as little-endian float32."""
    tokens: int | None
    """Of the input; None where nobody has counted them."""


class VectorService:
    """Reads the vectors of inputs."""

    def __init__(self, ledger: Ledger, *, shares_vectors: bool) -> None:
        self._ledger = ledger
        self._shares_vectors = shares_vectors

    def read(
        self,
        inputs: Sequence[EmbeddingInput],
        provider: str,
        model: str,
        user_id: UUID | None,
        dimensions: int | None = None,
    ) -> list[InputVector]:
        """Return the vectors of these, in their order. Raises `NotYet` where one is missing."""
        owner = None if self._shares_vectors else user_id
        keys = [content_key(one, owner, dimensions) for one in inputs]
        with self._ledger.transaction() as unit:
            kept = unit.query_vectors.read(provider, model, list(set(keys)))
        if missing := sum(key not in kept for key in keys):
            raise NotYet(
                f"{missing} of {len(keys)} inputs have no vector any more, as its time is over; "
                "ask again, without an idempotency key that was used for them."
            )
        return [InputVector(*kept[key]) for key in keys]
