"""The workload of a run: what it asks a provider, and what it stores of the answers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from promptstack.config.errors import PromptStackError
from promptstack.repositories.access_models import Tier
from promptstack.repositories.run_models import Run
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.accounting.prices import Prices
from promptstack.services.accounting.upper_bounds import (
    MostTokens,
    most_usd,
)
from promptstack.services.execution.content_calls import Call, Content
from promptstack.services.limiter.terms import Need
from promptstack.services.llm.answers import EmbeddingResponse, LLMResponse
from promptstack.services.llm.base import LLMService

Answer = LLMResponse | EmbeddingResponse


class Workload(ABC):
    """What one run asks a provider, and what that costs."""

    def __init__(self, run: Run, service: LLMService, prices: Prices) -> None:
        self._run = run
        self.tier = Tier.FREE
        """Of the run's user."""
        self.service = service
        self.prices = prices
        self.provider = run.provider
        self.model = run.model

    @abstractmethod
    def calls(self, contents: Sequence[Content]) -> list[Call]:
        """Pack contents into calls, within the provider's limits for one call."""

    def split_to_fit(self, call: Call) -> list[Call]:
        """Split a call that holds more than the provider takes, as far as is known by now."""
        return [call]

    @abstractmethod
    async def make(self, call: Call) -> Answer:
        """Make the call. Raises `ProviderError`."""

    def bytes_of(self, call: Call) -> int:
        """How much memory it takes until its answer is stored: always the same for a call.

        0 where that is next to nothing.
        """
        return 0

    def need(self, call: Call) -> Need:
        """The tokens it is expected to take."""
        if call.need is None:
            call.need = self._estimate(call)
        return call.need

    def upper_bound(self, call: Call) -> MostTokens | None:
        """The most tokens it can take, or None if nobody knows; computed once."""
        if call.upper_bound is None:
            call.upper_bound = self._upper_bound(call)
        return call.upper_bound

    def most_usd(self, call: Call) -> Decimal | None:
        """The most it can cost, or None if nobody knows."""
        return most_usd(self.prices, self.provider, self.model, self.upper_bound(call))

    @abstractmethod
    def _estimate(self, call: Call) -> Need: ...

    @abstractmethod
    def _upper_bound(self, call: Call) -> MostTokens | None: ...

    def cost(self, input_tokens: int, output_tokens: int) -> Decimal | None:
        """What so many tokens cost, if the model has a price."""
        return self.prices.cost(
            self.provider, self.model, input_tokens=input_tokens, output_tokens=output_tokens
        )

    def validate(self, call: Call, answer: Answer) -> PromptStackError | None:
        """What is wrong with a paid answer, if anything."""
        return None

    def skip_validation(self, call: Call, answer: Answer) -> PromptStackError | None:
        """What to record for an answer when there is no time left to validate it."""
        return self.validate(call, answer)

    def note(self, contents: Sequence[Content]) -> None:  # noqa: B027 - for most there is nothing
        """Take note of contents before anything else is asked about them."""

    @abstractmethod
    def find_stored(self, unit: UnitOfWork, hashes: Sequence[bytes]) -> set[bytes]:
        """The contents that have a stored answer."""

    @abstractmethod
    def store(
        self, unit: UnitOfWork, answered: Sequence[tuple[Call, Any]]
    ) -> Mapping[bytes, PromptStackError]:
        """Store answers by content; the errors of those that can't be stored."""
