"""Search: the passages nearest in meaning to a question."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import JsonValue

from promptstack.repositories.content.passages import Match
from promptstack.repositories.models import EmbeddingModel
from promptstack.repositories.session import Ledger
from promptstack.services.errors import InvalidInput, NotFound
from promptstack.services.limiter.limited_calls import LimitedCalls
from promptstack.services.limiter.terms import Need
from promptstack.services.llm.answers import Capability, EmbeddingResponse
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.event_loop import EventLoop
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.llm.pool import ProviderPool
from promptstack.services.text import check_storable, check_storable_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_RESULTS = 1_000


class SearchService:
    """Embeds a question with the documents' model, and finds the nearest passages."""

    def __init__(
        self,
        ledger: Ledger,
        factory: LLMServiceFactory,
        providers: ProviderPool,
        loop: EventLoop,
        calls: LimitedCalls,
        *,
        default_provider: str,
    ) -> None:
        self._ledger = ledger
        self._factory = factory
        self._providers = providers
        self._loop = loop
        self._calls = calls
        self._default_provider = default_provider

    def search(
        self,
        question: str,
        *,
        provider: str | None = None,
        model: str | None = None,
        limit: int = 5,
        where: Mapping[str, JsonValue] | None = None,
    ) -> list[Match]:
        """Return up to `limit` passages, best first: of documents, and items of runs.

        `where` names metadata that items must have; documents have none. Raises `InvalidInput`
        for an empty question, `NotFound` when the model has no vectors, and what the limiter and
        the provider raise.
        """
        if not check_storable(question, "The question").strip():
            raise InvalidInput("The question is empty.")
        check_storable_json(dict(where or {}), "The condition")
        if not 1 <= limit <= MAX_RESULTS:
            raise InvalidInput(f"The limit must be between 1 and {MAX_RESULTS}.")
        provider = provider or self._default_provider
        model = self._factory.service_class(provider).choose_model(Capability.EMBEDDING, model)
        self._find(provider, model)
        answer = self._loop.run(self._embed(self._providers.get(provider), model, question))
        return self.search_vector(
            answer.vectors[0], provider=provider, model=model, limit=limit, where=where
        )

    def search_vector(
        self,
        vector: "npt.NDArray[np.float32]",
        *,
        provider: str,
        model: str,
        limit: int = 5,
        where: Mapping[str, JsonValue] | None = None,
    ) -> list[Match]:
        """Do the same for a vector that this model made, among those of its size."""
        by_size = {known.dimensions: known for known in self._find(provider, model)}
        stored = by_size.get(vector.size)
        if stored is None:
            sizes = " or ".join(map(str, by_size))
            raise InvalidInput(
                f"The question's vector has {vector.size} numbers, and those of {provider}/{model} "
                f"that are kept have {sizes}. Was the model changed at the provider? Embed the "
                "texts again, then search."
            )
        with self._ledger.transaction() as unit:
            items = unit.passages.search_items(stored, vector, limit, where or {})
            documents = [] if where else unit.passages.search(stored, vector, limit)
        # A text that was embedded both ways is found once.
        known = {match.text for match in documents}
        others = [match for match in items if match.text not in known]
        return sorted([*documents, *others], key=lambda match: -match.score)[:limit]

    def _find(self, provider: str, model: str) -> Sequence[EmbeddingModel]:
        with self._ledger.transaction() as unit:
            stored = unit.embeddings.dimensions_of(provider, model)
        if not stored:
            raise NotFound(f"Nothing has been embedded with {provider}/{model} yet.")
        return stored

    async def _embed(self, service: LLMService, model: str, question: str) -> EmbeddingResponse:
        permit = await self._calls.enter(service, model, Need(service.estimate_tokens(question)))
        return await self._calls.make(
            service.name, permit, lambda: service.embed([question], model, None)
        )
