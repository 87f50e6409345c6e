"""The vectors of queries: taken from the ledger where they were paid for, else a provider is asked.

Such a call belongs to no job. It stands among the attempts all the same, from before it leaves, and
waits for the rate limit and is paid for by budgets as any other.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from promptstack.repositories.access_models import Tier
from promptstack.repositories.budgets.spending import Owner
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.jobs.records import NewCall
from promptstack.repositories.models import AttemptState, new_id
from promptstack.repositories.session import Ledger
from promptstack.services.accounting.billing import credible, failed, taken
from promptstack.services.accounting.prices import Prices
from promptstack.services.accounting.upper_bounds import most_of_texts, most_usd
from promptstack.services.budgets.admission import begin_alone
from promptstack.services.documents.vectors import vector_key
from promptstack.services.execution.provider_calls import known
from promptstack.services.limiter.limited_calls import LimitedCalls
from promptstack.services.limiter.terms import Need
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.event_loop import EventLoop
from promptstack.services.llm.pool import ProviderPool

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Asker:
    """Who asks, and whose budgets pay."""

    user_id: UUID | None = None
    api_key_id: UUID | None = None
    tier: Tier = Tier.FREE


class QueryVectors:
    """Finds or makes the vector of a query."""

    def __init__(
        self,
        ledger: Ledger,
        providers: ProviderPool,
        loop: EventLoop,
        calls: LimitedCalls,
        prices: Prices,
        *,
        shares_vectors: bool,
    ) -> None:
        self._ledger = ledger
        self._providers = providers
        self._loop = loop
        self._calls = calls
        self._prices = prices
        self._shares_vectors = shares_vectors
        self._process_id = new_id()
        """Stands for the worker in attempts."""

    def of(
        self, query: str, models: Sequence[EmbeddingModel], asker: Asker
    ) -> "npt.NDArray[np.float32]":
        """Return the vector of a query, of one of the sizes of a model: `models`, newest first.

        Raises what the limiter, the budgets and the provider raise.
        """
        owner = None if self._shares_vectors else asker.user_id
        key = vector_key(hashlib.sha256(query.encode()).digest(), owner)
        with self._ledger.transaction() as unit:
            for model in models:
                vector = unit.query_vectors.find(model, key)
                if vector is not None:
                    return vector
        return self._ask(query, key, models[0].provider, models[0].model, asker)

    def _ask(
        self, query: str, key: bytes, provider: str, model: str, asker: Asker
    ) -> "npt.NDArray[np.float32]":
        service = self._providers.get(provider)
        tokens = service.estimate_tokens(query)
        need = Need(tokens, 0, is_bulk=False, user_id=asker.user_id, tier=asker.tier)
        permit = self._loop.run(self._calls.enter(service, model, need))
        try:
            attempt_id = self._begin(service, model, query, tokens, asker)
        except BaseException:
            self._loop.run(self._calls.give_back(permit))
            raise
        try:
            answer = self._loop.run(
                self._calls.make(
                    provider, permit, lambda: service.embed([query], model, asker.user_id)
                )
            )
        except Exception as error:
            shown = known(error)
            took = failed(shown, provider, model, self._prices)
            failure = {"error_code": shown.code, "error": str(shown), "detail": shown.detail}
            with self._ledger.transaction() as unit:
                unit.attempts.settle(attempt_id, AttemptState.FAILED, **failure, **took)
            raise
        took = taken(answer, provider, model, permit, self._prices)
        vector: npt.NDArray[np.float32] = answer.vectors[0]
        with self._ledger.transaction() as unit:
            unit.query_vectors.keep(provider, model, key, vector)
            unit.attempts.settle(attempt_id, AttemptState.SUCCEEDED, **took)
        return vector

    def _begin(self, service: LLMService, model: str, query: str, tokens: int, asker: Asker) -> int:
        """Record that the call is about to leave. Raises the error of a budget that doesn't pay."""
        provider = service.name
        call = NewCall(
            0,
            provider,
            model,
            1,
            expected_tokens=credible(tokens),
            expected_cost_usd=self._prices.cost(
                provider, model, input_tokens=tokens, output_tokens=0
            ),
            most_usd=lambda: most_usd(self._prices, provider, model, most_of_texts([query])),
        )
        owner = Owner(asker.user_id, asker.api_key_id)
        with self._ledger.transaction() as unit:
            return begin_alone(unit, owner, call, self._process_id)
