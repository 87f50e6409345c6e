"""The workload of a run of embeddings."""

from collections.abc import Mapping, Sequence
from functools import partial

from promptstack.config.errors import PromptStackError
from promptstack.config.names import VectorType
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.run_models import Run
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.accounting.prices import Prices
from promptstack.services.accounting.upper_bounds import (
    MostTokens,
    most_of_texts,
)
from promptstack.services.documents.vectors import store_vectors
from promptstack.services.execution.content_calls import Call, Content
from promptstack.services.limiter.terms import Need
from promptstack.services.llm.answers import EmbeddingResponse
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.errors import BadResponse
from promptstack.services.llm.packing import bytes_in_hand, pack
from promptstack.services.runs.shards.workload import Answer, Workload

MAX_HALF = 65_504
"""The largest 16-bit float (IEEE 754)."""


class EmbeddingWorkload(Workload):
    """Embeds texts."""

    def __init__(self, run: Run, service: LLMService, prices: Prices, storage: VectorType) -> None:
        super().__init__(run, service, prices)
        self._storage = storage
        self._dimensions = service.dimensions_of(run.model)
        self._size_of_run: int | None = run.parameters.get("dimensions")
        self._asked: dict[bytes, int] = {}
        """The sizes that are asked for, by content."""

    def note(self, contents: Sequence[Content]) -> None:
        for content in contents:
            own = content.parameters
            size = self._size_of_run if own is None else own.get("dimensions")
            if size is not None:
                self._asked[content.hash] = size

    def calls(self, contents: Sequence[Content]) -> list[Call]:
        limits = self.service.limits_of(self.model)
        alike: dict[tuple[int, int], list[Content]] = {}
        for content in contents:
            alike.setdefault((content.tries, self._asked.get(content.hash, 0)), []).append(content)
        return [
            Call(batch, tries)
            for (tries, size), same in sorted(alike.items())
            for batch in pack(
                same, limits.in_memory(size or self._dimensions), self.service.estimate_tokens
            )
        ]

    def split_to_fit(self, call: Call) -> list[Call]:
        return call.split(self.service.limits_of(self.model).items)

    def bytes_of(self, call: Call) -> int:
        return bytes_in_hand(call.contents, self._size_of(call) or self._dimensions)

    async def make(self, call: Call) -> Answer:
        texts = [content.text for content in call.contents]
        return await self.service.embed(
            texts, self.model, self._run.user_id, dimensions=self._size_of(call)
        )

    def _size_of(self, call: Call) -> int | None:
        """The size of vectors that all contents of a call ask for; None is the model's own."""
        return self._asked.get(call.contents[0].hash)

    def _estimate(self, call: Call) -> Need:
        tokens = sum(self.service.estimate_tokens(content.text) for content in call.contents)
        return Need(tokens, 0, True, self._run.user_id, self.tier)

    def _upper_bound(self, call: Call) -> MostTokens | None:
        return most_of_texts(content.text for content in call.contents)

    def validate(self, call: Call, answer: Answer) -> PromptStackError | None:
        """Check that all numbers fit into 16 bits, if they are stored so."""
        if self._storage == VectorType.VECTOR or not isinstance(answer, EmbeddingResponse):
            return None
        if abs(answer.vectors).max() <= MAX_HALF:
            return None
        return BadResponse(
            f"{self.provider} answered numbers over {MAX_HALF:,}, which halfvec can't hold; set "
            "VECTOR_TYPE to vector before a model's first vectors."
        )

    def find_stored(self, unit: UnitOfWork, hashes: Sequence[bytes]) -> set[bytes]:
        by_size: dict[int | None, list[bytes]] = {}
        for hash_ in hashes:
            by_size.setdefault(self._asked.get(hash_), []).append(hash_)
        find = partial(unit.embeddings.find_stored, self.provider, self.model)
        return set().union(*(find(same, size) for size, same in by_size.items()))

    def store(
        self, unit: UnitOfWork, answered: Sequence[tuple[Call, EmbeddingResponse]]
    ) -> Mapping[bytes, PromptStackError]:
        by_size: dict[int | None, list[tuple[Call, EmbeddingResponse]]] = {}
        for one in answered:
            by_size.setdefault(self._size_of(one[0]), []).append(one)
        own = by_size.pop(None, [])
        for size, same in by_size.items():
            self._store_asked(unit, size or 0, same)
        return self._store_own(unit, own) if own else {}

    def _store_asked(
        self, unit: UnitOfWork, size: int, answered: Sequence[tuple[Call, EmbeddingResponse]]
    ) -> None:
        """Store vectors of a size that was asked for, which all of them have."""
        model = unit.embeddings.register_model(
            self.provider, self.model, size, storage=self._storage, with_index=False, is_asked=True
        )
        hashes = [hash_ for call, _ in answered for hash_ in call.hashes]
        vectors = [vector for _, answer in answered for vector in answer.vectors]
        unit.embeddings.store(model, hashes, vectors)

    def _store_own(
        self, unit: UnitOfWork, answered: Sequence[tuple[Call, EmbeddingResponse]]
    ) -> Mapping[bytes, PromptStackError]:
        def has_size(known: EmbeddingModel, number: int) -> bool:
            run = unit.runs.get(self._run.id)
            if run is None or run.started_at is None:
                return True
            # Vectors that were only reused may be fewer than the new ones.
            has_paid = run.succeeded > run.reused or known.created_at >= run.started_at
            return has_paid or run.reused >= number

        return store_vectors(
            unit,
            (self.provider, self.model),
            [(call.hashes, answer) for call, answer in answered],
            has_size,
            storage=self._storage,
            with_index=False,
        )
