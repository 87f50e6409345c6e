"""What runs of each kind ask of a provider, and what they keep of its answers."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np

from promptstack.config.errors import PromptStackError
from promptstack.config.names import VectorType
from promptstack.repositories.models import EmbeddingModel
from promptstack.repositories.runs.items import OpenItem
from promptstack.repositories.runs.models import Run, RunKind
from promptstack.repositories.session import UnitOfWork
from promptstack.services.execution.generation import EXPECTED_OUTPUT_TOKENS, result_of
from promptstack.services.limiter.terms import Need
from promptstack.services.llm.base import EmbeddingResponse, LLMResponse, LLMService
from promptstack.services.llm.errors import BadResponse
from promptstack.services.llm.packing import pack
from promptstack.services.llm.parameters import GenerationParameters
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.runs.json_schema.answers import AnswerNotJudged, AnswerSchema
from promptstack.services.runs.shards.vectors import keep_vectors
from promptstack.services.validation.schema_bounds import SchemaBounds

MOST_HALF = 65_504
"""The largest number of IEEE 754's two bytes."""
ENVELOPE_TOKENS = 64
"""More than any provider adds to a turn, a call or a tool for roles, names of fields and such."""
TOOLS_TOKENS = 1_024
"""More than any provider says to a model of its own accord where there are tools."""

Answer = LLMResponse | EmbeddingResponse


class Content(NamedTuple):
    """What is asked for once, however many items have it."""

    hash: bytes
    positions: tuple[int, ...]
    text: str
    """Empty where there are messages."""
    messages: Sequence[Any] | None = None
    tries: int = 0
    """How often it has failed by its own fault before this shard was taken."""


@dataclass(eq=False)
class Parting:
    """What the parts share of a call that is asked again in parts."""

    left: int
    """How many of its contents may be paid for in vain from now on."""


@dataclass(eq=False)
class Call:
    """One question: a prompt, or texts that are embedded together."""

    contents: Sequence[Content]
    tries: int = 0
    """How often it has failed by its own fault."""
    refusals: int = 0
    """How often the provider asked to slow down."""
    request: GenerationRequest | None = None
    """What is asked, once it was put together."""
    need: Need | None = None
    """What it is expected to take, once it was estimated."""
    most: tuple[int, int] | None = None
    """The most that it can take, once that was computed."""
    parting: Parting | None = None
    """Of what it is a part."""

    @property
    def hashes(self) -> list[bytes]:
        """Of its contents."""
        return [content.hash for content in self.contents]

    @property
    def positions(self) -> Iterable[int]:
        """Of all items that it serves."""
        return (position for content in self.contents for position in content.positions)

    def only(self, hashes: Collection[bytes]) -> "Call":
        """The same for some of its contents."""
        contents = [content for content in self.contents if content.hash in hashes]
        if len(contents) == len(self.contents):
            return self
        return Call(contents, self.tries, parting=self.parting)

    def cut(self, most: int) -> "list[Call]":
        """The same in calls of `most` contents each."""
        if len(self.contents) <= most:
            return [self]
        starts = range(0, len(self.contents), most)
        return [
            Call(self.contents[first : first + most], self.tries, parting=self.parting)
            for first in starts
        ]

    def halves(self, parting: Parting | None = None) -> "list[Call]":
        """The same in two; of one content, as it is."""
        if len(self.contents) == 1:
            return [self]
        middle, parting = len(self.contents) // 2, parting or self.parting
        halves = self.contents[:middle], self.contents[middle:]
        return [
            Call(half, half[0].tries if len(half) == 1 else 0, parting=parting) for half in halves
        ]


def contents_of(items: Iterable[OpenItem]) -> list[Content]:
    """The different contents of items, in order."""
    alike: dict[bytes, list[OpenItem]] = {}
    for item in items:
        alike.setdefault(item.content_hash, []).append(item)
    return [
        Content(
            hash_,
            tuple(item.position for item in same),
            same[0].text or "",
            same[0].messages,
            max(item.tries for item in same),
        )
        for hash_, same in alike.items()
    ]


class Asking(ABC):
    """What one run asks, and how."""

    def __init__(self, run: Run) -> None:
        self.provider = run.provider
        self.model = run.model
        self.user_id: UUID | None = run.user_id

    @abstractmethod
    def calls(self, contents: Sequence[Content], service: LLMService) -> list[Call]:
        """Put contents together to calls, within what one call may hold."""

    def fitting(self, call: Call, service: LLMService) -> list[Call]:
        """The same in calls that hold no more than the provider takes, as is known by now."""
        return [call]

    @abstractmethod
    async def ask(self, call: Call, service: LLMService) -> Answer:
        """Make the call. Raises `ProviderError`."""

    def need(self, call: Call, service: LLMService) -> Need:
        """What it is expected to take."""
        if call.need is None:
            call.need = self._estimate(call, service)
        return call.need

    def most(self, call: Call) -> tuple[int, int] | None:
        """The most tokens that it can take, input and output; None where that isn't known.

        A token is a byte of text or more.
        """
        if call.most is None:
            call.most = self._most(call)
        return call.most

    @abstractmethod
    def _most(self, call: Call) -> tuple[int, int] | None:
        """Compute it."""

    @abstractmethod
    def _estimate(self, call: Call, service: LLMService) -> Need:
        """Estimate what it takes."""

    def fault(self, answer: Answer) -> PromptStackError | None:
        """What is wrong with an answer that was paid for."""
        return None

    def unjudged(self, answer: Answer) -> PromptStackError | None:
        """What becomes of an answer that there is no time left to judge; see `fault`."""
        return self.fault(answer)

    @abstractmethod
    def find_stored(self, unit: UnitOfWork, hashes: Sequence[bytes]) -> set[bytes]:
        """Those of the contents that were paid for before."""

    @abstractmethod
    def keep(
        self, unit: UnitOfWork, answered: Sequence[tuple[Call, Any]]
    ) -> Mapping[bytes, PromptStackError]:
        """Store answers by their contents; what is wrong with those that can't be kept."""


@dataclass(frozen=True)
class EmbeddingTerms:
    """How vectors are stored."""

    storage: VectorType = VectorType.VECTOR


class EmbeddingAsking(Asking):
    """Vectors of texts."""

    def __init__(self, run: Run, terms: EmbeddingTerms) -> None:
        super().__init__(run)
        self._run = run
        self._terms = terms

    def calls(self, contents: Sequence[Content], service: LLMService) -> list[Call]:
        """Make calls that are as full as the provider allows."""
        limits = service.limits_of(self.model)
        by_tries: dict[int, list[Content]] = {}
        for content in contents:
            by_tries.setdefault(content.tries, []).append(content)
        return [
            Call(batch, tries)
            for tries, alike in sorted(by_tries.items())
            for batch in pack(alike, limits, service.estimate_tokens)
        ]

    def fitting(self, call: Call, service: LLMService) -> list[Call]:
        return call.cut(service.limits_of(self.model).items)

    async def ask(self, call: Call, service: LLMService) -> Answer:
        return await service.embed(
            [content.text for content in call.contents], self.model, self.user_id
        )

    def _estimate(self, call: Call, service: LLMService) -> Need:
        return Need(
            sum(service.estimate_tokens(content.text) for content in call.contents), is_bulk=True
        )

    def _most(self, call: Call) -> tuple[int, int] | None:
        return sum(len(content.text.encode()) for content in call.contents), 0

    def fault(self, answer: Answer) -> PromptStackError | None:
        """Refuse numbers that don't fit into two bytes."""
        if self._terms.storage == VectorType.VECTOR or not isinstance(answer, EmbeddingResponse):
            return None
        if np.abs(answer.vectors).max() <= MOST_HALF:
            return None
        return BadResponse(
            f"{self.provider} answered numbers over {MOST_HALF:,}, which halfvec can't hold; set "
            "VECTOR_TYPE to vector before a model's first vectors."
        )

    def find_stored(self, unit: UnitOfWork, hashes: Sequence[bytes]) -> set[bytes]:
        return unit.embeddings.find_stored(self.provider, self.model, hashes)

    def keep(
        self, unit: UnitOfWork, answered: Sequence[tuple[Call, EmbeddingResponse]]
    ) -> Mapping[bytes, PromptStackError]:

        def has_size(known: EmbeddingModel, number: int) -> bool:
            run = unit.runs.get(self._run.id)
            if run is None or run.started_at is None:
                return True
            # What was only found may be less than what would be lost now.
            has_paid = run.succeeded > run.reused or known.created_at >= run.started_at
            return has_paid or run.reused >= number

        answers = [(call.hashes, answer) for call, answer in answered]
        return keep_vectors(
            unit,
            (self.provider, self.model),
            answers,
            has_size,
            storage=self._terms.storage,
            with_index=False,
        )


class GenerationAsking(Asking):
    """Answers to prompts."""

    def __init__(self, run: Run, schema_bounds: SchemaBounds) -> None:
        super().__init__(run)
        self._parameters = GenerationParameters(**run.parameters)
        schema = run.parameters.get("json_schema")
        self._schema = None if schema is None else AnswerSchema(schema, schema_bounds)

    def calls(self, contents: Sequence[Content], service: LLMService) -> list[Call]:
        """Make one call for each content."""
        return [Call([content], content.tries) for content in contents]

    async def ask(self, call: Call, service: LLMService) -> Answer:
        return await service.generate_text(self._request(call), self.user_id, failures=call.tries)

    def _estimate(self, call: Call, service: LLMService) -> Need:
        request = self._request(call)
        expected = service.estimate_tokens(request.text())
        return Need(expected, request.max_tokens or EXPECTED_OUTPUT_TOKENS, is_bulk=True)

    def _most(self, call: Call) -> tuple[int, int] | None:
        """None without `max_tokens`: then nobody knows."""
        request = self._request(call)
        if request.max_tokens is None:
            return None
        turns = request.conversation()
        calls = [call for turn in turns for call in turn.tool_calls]
        texts = [
            text or "" for turn in turns for text in (turn.content, turn.tool_call_id, turn.name)
        ]
        structured: list[Any] = [made.model_dump() for made in (*calls, *request.tools)]
        if request.json_schema is not None:
            structured.append(request.json_schema)
        told = sum(len(text.encode()) for text in texts)
        # With its escapes and spaces it is as long as a provider may get it, or longer.
        told += sum(len(json.dumps(made)) for made in structured)
        told += ENVELOPE_TOKENS * (len(turns) + len(structured))
        return told + (TOOLS_TOKENS if request.tools else 0), request.max_tokens

    def fault(self, answer: Answer) -> PromptStackError | None:
        """Refuse an answer that is not an instance of the schema."""
        if self._schema is None or not isinstance(answer, LLMResponse):
            return None
        return self._schema.fault(answer)

    def unjudged(self, answer: Answer) -> PromptStackError | None:
        if self._schema is None or not isinstance(answer, LLMResponse):
            return None
        return AnswerNotJudged(
            "There was no time left to judge the answer by the schema, as the run or its worker "
            "was stopped. Make the schema simpler, or ask for shorter answers.",
            detail=answer.text,
        )

    def find_stored(self, unit: UnitOfWork, hashes: Sequence[bytes]) -> set[bytes]:
        return unit.answers.find_stored(self.provider, self.model, hashes)

    def keep(
        self, unit: UnitOfWork, answered: Sequence[tuple[Call, LLMResponse]]
    ) -> Mapping[bytes, PromptStackError]:
        results = {call.contents[0].hash: self._result(answer) for call, answer in answered}
        unit.answers.store(self.provider, self.model, results)
        return {}

    def _result(self, answer: LLMResponse) -> Mapping[str, Any]:
        result = result_of(answer)
        return result if self._schema is None else {**result, "json": self._schema.read(answer)}

    def _request(self, call: Call) -> GenerationRequest:
        if call.request is None:
            # Its parameters were checked with the first one: a schema takes its time.
            content = call.contents[0]
            target = (self.provider, self.model)
            call.request = GenerationRequest.of_item(
                self._parameters, target, content.text, content.messages
            )
        return call.request


def asking_of(run: Run, terms: EmbeddingTerms, schema_bounds: SchemaBounds) -> Asking:
    """How this run asks. Raises `InvalidInput` for a schema that is beyond the bounds by now."""
    if run.kind == RunKind.GENERATION:
        return GenerationAsking(run, schema_bounds)
    return EmbeddingAsking(run, terms)
