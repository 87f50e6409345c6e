"""Search: the passages nearest in meaning to a question."""

from repositories.embeddings import Match
from repositories.session import Ledger
from services.errors import InvalidInput, NotFound
from services.limited_calls import LimitedCalls
from services.limiter.terms import Need
from services.llm.base import Capability, EmbeddingResponse, LLMService
from services.llm.event_loop import EventLoop
from services.llm.factory import LLMServiceFactory
from services.llm.pool import ProviderPool
from services.text import check_storable

MAX_RESULTS = 1_000


class SearchService:
    """Embeds a question with the model that embedded the documents, and finds its neighbours."""

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
    ) -> list[Match]:
        """Return up to `limit` passages, best first.

        Raises `InvalidInput` for an empty question, `NotFound` when the model has no vectors,
        and what the limiter and the provider raise.
        """
        if not check_storable(question, "The question").strip():
            raise InvalidInput("The question is empty.")
        if not 1 <= limit <= MAX_RESULTS:
            raise InvalidInput(f"The limit must be between 1 and {MAX_RESULTS}.")
        provider = provider or self._default_provider
        model = self._factory.service_class(provider).choose_model(Capability.EMBEDDING, model)
        with self._ledger.transaction() as unit:
            stored = unit.embeddings.find_model(provider, model)
        if stored is None:
            raise NotFound(f"Nothing has been embedded with {provider}/{model} yet.")
        answer = self._loop.run(self._embed(self._providers.get(provider), model, question))
        with self._ledger.transaction() as unit:
            return unit.embeddings.search(stored, answer.vectors[0], limit)

    async def _embed(self, service: LLMService, model: str, question: str) -> EmbeddingResponse:
        permit = await self._calls.enter(service, model, Need(service.estimate_tokens(question)))
        return await self._calls.make(
            service.name, permit, lambda: service.embed([question], model, None)
        )
