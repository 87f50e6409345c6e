"""The workload of each kind of run: what it asks a provider, and what it stores of the answers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from promptstack.config.errors import PromptStackError
from promptstack.config.names import VectorType
from promptstack.repositories.access_models import Tier
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.run_models import Run, RunKind
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.accounting.prices import Prices
from promptstack.services.accounting.upper_bounds import (
    MostTokens,
    most_of_generation,
    most_of_texts,
    most_usd,
)
from promptstack.services.documents.vectors import store_vectors
from promptstack.services.execution.content_calls import Call, Content
from promptstack.services.execution.generation import EXPECTED_OUTPUT_TOKENS, result_of
from promptstack.services.limiter.terms import Need
from promptstack.services.llm.answers import EmbeddingResponse, LLMResponse
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.errors import BadResponse
from promptstack.services.llm.packing import bytes_in_hand, pack
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.runs.json_schema.answers import AnswerNotJudged, AnswerSchema
from promptstack.services.runs.shards.asked import AskedOfRun
from promptstack.services.validation.schema_bounds import SchemaBounds

MAX_HALF = 65_504
"""The largest 16-bit float (IEEE 754)."""

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

    @abstractmethod
    def find_stored(self, unit: UnitOfWork, hashes: Sequence[bytes]) -> set[bytes]:
        """The contents that have a stored answer."""

    @abstractmethod
    def store(
        self, unit: UnitOfWork, answered: Sequence[tuple[Call, Any]]
    ) -> Mapping[bytes, PromptStackError]:
        """Store answers by content; the errors of those that can't be stored."""


class EmbeddingWorkload(Workload):
    """Embeds texts."""

    def __init__(self, run: Run, service: LLMService, prices: Prices, storage: VectorType) -> None:
        super().__init__(run, service, prices)
        self._storage = storage
        self._dimensions = service.dimensions_of(run.model)

    def calls(self, contents: Sequence[Content]) -> list[Call]:
        limits = self.service.limits_of(self.model).in_memory(self._dimensions)
        by_tries: dict[int, list[Content]] = {}
        for content in contents:
            by_tries.setdefault(content.tries, []).append(content)
        return [
            Call(batch, tries)
            for tries, alike in sorted(by_tries.items())
            for batch in pack(alike, limits, self.service.estimate_tokens)
        ]

    def split_to_fit(self, call: Call) -> list[Call]:
        return call.split(self.service.limits_of(self.model).items)

    def bytes_of(self, call: Call) -> int:
        return bytes_in_hand(call.contents, self._dimensions)

    async def make(self, call: Call) -> Answer:
        texts = [content.text for content in call.contents]
        return await self.service.embed(texts, self.model, self._run.user_id)

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
        return unit.embeddings.find_stored(self.provider, self.model, hashes)

    def store(
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


class GenerationWorkload(Workload):
    """Generates answers to prompts: one call a content."""

    def __init__(
        self, run: Run, service: LLMService, prices: Prices, schema_bounds: SchemaBounds
    ) -> None:
        super().__init__(run, service, prices)
        self._asked = AskedOfRun(run, schema_bounds)

    def calls(self, contents: Sequence[Content]) -> list[Call]:
        return [Call([content], content.tries) for content in contents]

    async def make(self, call: Call) -> Answer:
        request, user_id = self._request(call), self._run.user_id
        return await self.service.generate_text(request, user_id, failures=call.tries)

    def _estimate(self, call: Call) -> Need:
        request = self._request(call)
        tokens = self.service.estimate_tokens(request.text())
        output = request.max_tokens or EXPECTED_OUTPUT_TOKENS
        return Need(tokens, output, True, self._run.user_id, self.tier)

    def _upper_bound(self, call: Call) -> MostTokens | None:
        return most_of_generation(self._request(call))

    def validate(self, call: Call, answer: Answer) -> PromptStackError | None:
        """Check the answer against the schema."""
        schema = self._asked.of(call.contents[0]).schema
        if schema is None or not isinstance(answer, LLMResponse):
            return None
        return schema.validate(answer)

    def skip_validation(self, call: Call, answer: Answer) -> PromptStackError | None:
        if self._request(call).json_schema is None or not isinstance(answer, LLMResponse):
            return None
        return AnswerNotJudged(
            "There was no time left to judge the answer by the schema, as the run or its worker "
            "was stopped. Make the schema simpler, or ask for shorter answers.",
            detail=answer.text,
        )

    def find_stored(self, unit: UnitOfWork, hashes: Sequence[bytes]) -> set[bytes]:
        return unit.answers.find_stored(self.provider, self.model, hashes)

    def store(
        self, unit: UnitOfWork, answered: Sequence[tuple[Call, LLMResponse]]
    ) -> Mapping[bytes, PromptStackError]:
        results = {call.contents[0].hash: self._result(call, answer) for call, answer in answered}
        unit.answers.store(self.provider, self.model, results)
        return {}

    def _result(self, call: Call, answer: LLMResponse) -> Mapping[str, Any]:
        result = result_of(answer)
        if self._request(call).json_schema is None:
            return result
        return {**result, "json": AnswerSchema.read(answer)}

    def _request(self, call: Call) -> GenerationRequest:
        if call.request is None:
            # The parameters were checked once, for all that have the same: a schema takes long.
            content = call.contents[0]
            how = self._asked.of(content)
            call.request = how.request.with_input(content.text, content.messages)
        return call.request


def workload_of(
    run: Run, service: LLMService, prices: Prices, storage: VectorType, bounds: SchemaBounds
) -> Workload:
    """The workload of a run. Raises `InvalidInput` if its schema exceeds today's bounds."""
    if run.kind == RunKind.GENERATION:
        return GenerationWorkload(run, service, prices, bounds)
    return EmbeddingWorkload(run, service, prices, storage)
