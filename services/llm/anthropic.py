"""Anthropic's Messages API on the official SDK, for generations."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar
from uuid import UUID

import anthropic
import httpx2

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.answers import Capability, LLMResponse, TokenCount, Usage
from promptstack.services.llm.anthropic_stream import MessageAssembly
from promptstack.services.llm.http_clients import ProviderClient
from promptstack.services.llm.listening import Listener
from promptstack.services.llm.parameters import GenerationParameters
from promptstack.services.llm.reading import Part, Said
from promptstack.services.llm.requests import GenerationRequest, Message, with_options
from promptstack.services.llm.sdk import SDKService
from promptstack.services.llm.tool_calls import tool_call

ANTHROPIC_URL = "https://api.anthropic.com"

DEFAULT_MAX_TOKENS = 4_096
"""The API requires a maximum. This is sent if the request has none."""
MOST_TOKENS_AT_ONCE = 21_333
"""The SDK refuses a higher maximum without streaming, as the answer may take over ten minutes (it
expects 3,600 s for 128,000 tokens)."""
RESERVED_OPTIONS = frozenset({"model", "messages", "system", "max_tokens", "stream"})
NO_ID = re.compile(r"[^A-Za-z0-9_-]")
FINISH_REASONS: Mapping[str, str] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
}


class AnthropicService(SDKService[anthropic.AsyncAnthropic]):
    """Generations from Anthropic."""

    name = "anthropic"
    wire = "anthropic"
    official_url = ANTHROPIC_URL
    key_setting = "ANTHROPIC_API_KEY"
    reserved_options = RESERVED_OPTIONS
    default_models: ClassVar[Mapping[Capability, str]] = {Capability.GENERATION: "claude-haiku-4-5"}
    unsupported: ClassVar[frozenset[str]] = frozenset({"seed"})
    known_options: ClassVar[frozenset[str] | None] = None

    @classmethod
    def check_parameters(cls, model: str, parameters: GenerationParameters) -> None:
        """Also refuse temperatures over 1, and a max_tokens that needs streaming."""
        super().check_parameters(model, parameters)
        if (parameters.temperature or 0.0) > 1.0:
            raise InvalidInput("Provider 'anthropic' takes temperatures from 0 to 1.")
        is_streamed = getattr(parameters, "stream", False)
        if not is_streamed and (parameters.max_tokens or 0) > MOST_TOKENS_AT_ONCE:
            raise InvalidInput(
                f"Provider 'anthropic' answers at most {MOST_TOKENS_AT_ONCE:,} tokens at once; "
                "lower max_tokens, or ask for stream."
            )

    @classmethod
    def check_turns(cls, request: GenerationRequest) -> None:
        """Refuse a system turn after another turn, and names."""
        request.check_system_first(cls.name)
        request.check_no_names("Provider 'anthropic'")

    async def _generate(
        self, request: GenerationRequest, user_id: UUID | None, failures: int
    ) -> LLMResponse:
        self._check_again(request)
        answer = await self._ask("/v1/messages", with_options(_body(request), request.options))
        return self._response(answer, request, read)

    async def _stream(
        self, request: GenerationRequest, user_id: UUID | None, failures: int, listener: Listener
    ) -> LLMResponse:
        self._check_again(request)
        body = {**with_options(_body(request), request.options), "stream": True}
        ask = self._ask("/v1/messages", body)
        return await self._streamed(ask, request, read, MessageAssembly(listener))

    async def count_tokens(self, text: str, model: str) -> TokenCount:
        """Ask Anthropic, which is free but rate-limited."""
        turns = [{"role": "user", "content": text}]
        answer = await self._ask("/v1/messages/count_tokens", {"model": model, "messages": turns})
        with self._reading(answer) as found:
            return TokenCount(int(found.body.get("input_tokens")), is_exact=True)

    def _connect(
        self, api_key: str, base_url: str, timeout: httpx2.Timeout
    ) -> anthropic.AsyncAnthropic:
        self._http = ProviderClient(timeout)
        version = {} if self._api_version is None else {"anthropic-version": self._api_version}
        return anthropic.AsyncAnthropic(
            api_key=api_key,
            base_url=base_url,
            default_headers=version,
            max_retries=0,
            timeout=timeout,
            http_client=self._http,
        )

    async def _disconnect(self, client: anthropic.AsyncAnthropic) -> None:
        await client.close()

    async def _list_models(self) -> list[str]:
        return self._names_in(await self._ask("/v1/models"))

    async def _ask_nothing(self, kind: Capability, model: str) -> None:
        await self._ask("/v1/messages", {"model": model})


def _body(request: GenerationRequest) -> dict[str, Any]:
    """The JSON of a request, without parameters that it does not set."""
    fields: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_tokens or DEFAULT_MAX_TOKENS,
        "messages": [_turn(turn) for turn in request.turns() if turn.role != "system"],
        "system": request.system_prompt() or None,
        "temperature": request.temperature,
        "stop_sequences": request.stop or None,
    }
    if request.json_schema is not None:
        schema = {"type": "json_schema", "schema": request.json_schema}
        fields["output_config"] = {"format": schema}
    if request.tools:
        fields["tools"] = [
            {
                "name": tool.name,
                "description": tool.description,
                "input_schema": tool.parameters_schema(),
                **({"strict": True} if tool.strict else {}),
            }
            for tool in request.tools
        ]
        fields["tool_choice"] = _tool_choice(request.tool_choice)
    return {name: value for name, value in fields.items() if value is not None}


def _tool_choice(choice: str | None) -> dict[str, str] | None:
    match choice:
        case None:
            return None
        case "auto" | "none":
            return {"type": choice}
        case "required":
            return {"type": "any"}
        case _:
            return {"type": "tool", "name": choice}


def _turn(turn: Message) -> dict[str, Any]:
    if turn.role == "tool":
        result = {
            "type": "tool_result",
            "tool_use_id": _call_id(turn.tool_call_id or ""),
            "content": turn.content,
        }
        return {"role": "user", "content": [result]}
    if not turn.tool_calls:
        return {"role": turn.role, "content": turn.content}
    parts: list[dict[str, Any]] = [{"type": "text", "text": turn.content}] if turn.content else []
    parts += [
        {"type": "tool_use", "id": _call_id(call.id), "name": call.name, "input": call.arguments}
        for call in turn.tool_calls
    ]
    return {"role": turn.role, "content": parts}


def _call_id(given: str) -> str:
    """A call's id in characters that Anthropic accepts: another server may have made it."""
    return NO_ID.sub("_", given)


def read(answer: Part) -> Said:
    """Read an answer, and note what is malformed."""
    reason = answer.word("stop_reason")
    calls = [part for part in answer.parts("content") if part.is_a("tool_use", "input")]
    return Said(
        text=None if answer.get("content") is None else answer.text("content"),
        usage=_usage(answer.part("usage", is_expected=True)),
        model=answer.word("model"),
        finish_reason=None if reason is None else FINISH_REASONS.get(reason, reason),
        tool_calls=tuple(
            call
            for position, part in enumerate(calls)
            for call in tool_call(part, position, part.get("id"), part.get("input"))
        ),
        refusal=reason if reason == "refusal" else None,
    )


def _usage(said: Part) -> Usage:
    fresh = said.count("input_tokens")
    cached = said.count("cache_read_input_tokens", 0)
    written = said.count("cache_creation_input_tokens", 0)
    return Usage(
        # `input_tokens` are those that no cache was used for.
        input_tokens=None
        if fresh is None or cached is None or written is None
        else fresh + cached + written,
        output_tokens=said.count("output_tokens"),
        cached_tokens=cached,
        cache_write_tokens=written,
    )
