"""The most that a call can cost, for what must never be passed: a run's limit, and spend caps."""

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from promptstack.services.accounting.prices import Prices
from promptstack.services.llm.packing import EmbeddingInput
from promptstack.services.llm.reading import MOST_TOKENS
from promptstack.services.llm.request_bodies import API
from promptstack.services.llm.requests import GenerationRequest

ENVELOPE_TOKENS = 64
"""More than any provider adds to a turn, a tool call or a tool for roles and field names."""
TOOLS_TOKENS = 1_024
"""More than any provider adds to the prompt when there are tools."""

WITHIN_MOST = frozenset(
    {API, "frequency_penalty", "parallel_tool_calls", "presence_penalty", "prompt_cache_key"}
    | {"reasoning", "reasoning_effort", "response_format", "safety_identifier", "top_p", "user"}
)
"""Options of OpenAI's wire that change what is answered, but not the most that it can cost: what a
model thinks counts against its longest answer."""


class MostTokens(NamedTuple):
    """The most tokens that a call can take."""

    input: int
    output: int


def most_of_texts(texts: Iterable[EmbeddingInput]) -> MostTokens:
    """Of the embedding of texts: a token is at least one byte of text. Token ids are counted."""
    return MostTokens(
        sum(len(text.encode()) if isinstance(text, str) else len(text) for text in texts), 0
    )


def may_raise_cost(options: Mapping[str, Any]) -> bool:
    """Whether options of a provider may take a call over its prompt and `max_tokens`."""
    return not options.keys() <= WITHIN_MOST


def most_of_generation(request: GenerationRequest) -> MostTokens | None:
    """Of a generation; None where nobody knows.

    That is so without `max_tokens`, and with options that may change what a call takes.
    """
    if request.max_tokens is None or may_raise_cost(request.options):
        return None
    turns = request.conversation()
    tool_calls = [tool_call for turn in turns for tool_call in turn.tool_calls]
    texts = [text or "" for turn in turns for text in (turn.content, turn.tool_call_id, turn.name)]
    structured: list[Any] = [part.model_dump() for part in (*tool_calls, *request.tools)]
    if request.json_schema is not None:
        structured.append(request.json_schema)
    structured += [request.options] if request.options else []
    size = sum(len(text.encode()) for text in texts)
    # Our escapes and spaces make it at least as long as any provider's form of it.
    size += sum(len(json.dumps(part)) for part in structured)
    size += ENVELOPE_TOKENS * (len(turns) + len(structured))
    return MostTokens(size + (TOOLS_TOKENS if request.tools else 0), request.max_tokens)


def most_usd(prices: Prices, provider: str, model: str, most: MostTokens | None) -> Decimal | None:
    """What so many tokens cost. None where nobody knows: the model has no price, or `most` is None.

    What is free is so for any number of tokens.
    """
    tokens = most or MostTokens(MOST_TOKENS, MOST_TOKENS)
    cost = prices.cost(provider, model, input_tokens=tokens.input, output_tokens=tokens.output)
    return cost if most is not None or cost == 0 else None
