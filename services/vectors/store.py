"""What a job for vectors writes. A write may run twice, so it changes nothing but the ledger."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from promptstack.repositories.content.query_vectors import KeptVector
from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.execution.content_calls import Call, reserve
from promptstack.services.vectors.contents import Wanted

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Open:
    """What is left of the job's contents."""

    reserved: Sequence[Wanted]
    """Those that this job is to pay for."""
    is_shared: bool
    """Whether another job asks for some of them now."""


class VectorStore:
    """Keeps the vectors of one job."""

    def __init__(self, claim: Claim, *, reads_others: bool) -> None:
        """With `reads_others`, also the vectors of documents and runs are used."""
        self._claim = claim
        self._model = (claim.provider, claim.model)
        self._reads_others = reads_others

    def find_open(self, unit: UnitOfWork, wanted: Sequence[Wanted]) -> Open:
        """Reserve the contents that have no vector."""
        # Lock the job's row before its reservations, as the reconciler does.
        unit.steps.check_claim(self._claim)
        hashes = [one.hash for one in wanted]
        # Not looked for before: most are new, and each statement is a part of somebody's wait.
        ours, kept = reserve(unit, self._claim, hashes, partial(self._find_kept, unit))
        return Open(
            [one for one in wanted if one.hash in ours],
            is_shared=len(ours) + len(kept) < len(hashes),
        )

    def store(
        self,
        unit: UnitOfWork,
        call: Call,
        vectors: Mapping[bytes, KeptVector],
        progress: tuple[int, int],
        result: Mapping[str, Any] | None,
    ) -> None:
        """Keep a call's vectors, and end the job if there is a `result`.

        What was paid for is kept even if the job is not ours any more.
        """
        unit.query_vectors.keep_all(*self._model, vectors)
        with suppress(ClaimLost):
            if result is None:
                unit.steps.set_progress(self._claim, *progress)
            else:
                unit.steps.succeed(self._claim, result)
        # After the job's row, as in `find_open`.
        unit.reservations.release(self._claim, call.hashes)

    def _find_kept(self, unit: UnitOfWork, hashes: Sequence[bytes]) -> set[bytes]:
        """Which of these have a vector that is kept. One of a document or a run is kept, too."""
        kept = unit.query_vectors.find_kept(*self._model, hashes)
        missing = [hash_ for hash_ in hashes if hash_ not in kept]
        if not missing or not self._reads_others:
            return kept
        found = unit.embeddings.read(*self._model, missing)
        if found:
            unit.query_vectors.keep_all(
                *self._model, {hash_: kept_vector(one, None) for hash_, one in found.items()}
            )
        return kept | found.keys()


def kept_vector(numbers: "np.ndarray[Any, np.dtype[np.float32]]", tokens: int | None) -> KeptVector:
    """Return a vector as it is kept."""
    return KeptVector(numbers.astype("<f4").tobytes(), tokens)
