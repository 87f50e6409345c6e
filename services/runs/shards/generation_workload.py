"""The workload of a run of generations: one call a content."""

from collections.abc import Mapping, Sequence
from typing import Any

from promptstack.config.errors import PromptStackError
from promptstack.repositories.run_models import Run
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.accounting.prices import Prices
from promptstack.services.accounting.upper_bounds import (
    MostTokens,
    most_of_generation,
)
from promptstack.services.execution.content_calls import Call, Content
from promptstack.services.execution.generation import EXPECTED_OUTPUT_TOKENS, result_of
from promptstack.services.limiter.terms import Need
from promptstack.services.llm.answers import LLMResponse
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.runs.json_schema.answers import AnswerNotJudged, AnswerSchema
from promptstack.services.runs.shards.asked import AskedOfRun
from promptstack.services.runs.shards.workload import Answer, Workload
from promptstack.services.validation.schema_bounds import SchemaBounds


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
