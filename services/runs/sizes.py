"""The sizes of a run's vectors: the model's own, or those that its requests ask for."""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import InvalidInput

MAX_ASKED_SIZES: Final = 64
"""Of one model, of all users: each has a table of its own."""


def models_of(
    unit: UnitOfWork, run_id: UUID, model: tuple[str, str], parameters: Mapping[str, Any]
) -> Sequence[EmbeddingModel]:
    """Return the sizes in which a run may have vectors, the model's own first, the newest of them.

    `model` is the provider and the model's name, `parameters` are the run's.
    """
    own, asked = unit.embeddings.sizes_of(*model)
    if not asked:
        return own
    wanted = unit.items.asked_sizes(run_id, parameters.get("dimensions"))
    of_run = [one for one in asked if one.dimensions in wanted]
    return [*own, *of_run] if None in wanted else of_run


class SizesAskedFor:
    """Bounds the sizes that are asked for, while a run is read."""

    def __init__(self, ledger: Ledger, provider: str, model: str) -> None:
        self._ledger = ledger
        self._model = (provider, model)
        self._seen: set[int] = set()
        self._known: set[int] | None = None

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Raise `InvalidInput` for one size too many."""
        size: int | None = parameters.get("dimensions")
        if size is None or size in self._seen:
            return
        if self._known is None:
            with self._ledger.transaction() as unit:
                _, asked = unit.embeddings.sizes_of(*self._model)
            self._known = {one.dimensions for one in asked}
        if len(self._known | {size}) > MAX_ASKED_SIZES:
            raise InvalidInput(
                f"Vectors of {'/'.join(self._model)} are kept in {MAX_ASKED_SIZES} sizes already, "
                f"and no more can be: ask for one of those, such as {min(self._known)}.",
                pointer="/dimensions",
            )
        self._known.add(size)
        self._seen.add(size)
