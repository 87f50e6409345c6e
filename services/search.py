"""Search: the passages nearest in meaning to a question."""

from repositories.embeddings import Match
from repositories.session import Ledger
from services.errors import InvalidInput, NotFound
from services.llm.base import Capability
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
        default_provider: str,
    ) -> None:
        self._ledger = ledger
        self._factory = factory
        self._providers = providers
        self._loop = loop
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
        and what the provider raises.
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
        service = self._providers.get(provider)
        answer = self._loop.run(service.embed([question], model, None))
        with self._ledger.transaction() as unit:
            return unit.embeddings.search(stored, answer.vectors[0], limit)
