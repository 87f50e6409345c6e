"""Google's Gemini API on the official SDK: generations and embeddings."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from uuid import UUID

import httpx2
from google import genai
from google.genai import types
from pydantic import ValidationError

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.answers import (
    Capability,
    EmbeddingResponse,
    LLMResponse,
    TokenCount,
    Usage,
)
from promptstack.services.llm.errors import InvalidProviderRequest
from promptstack.services.llm.gemini_stream import ContentAssembly
from promptstack.services.llm.headers import limit_report, request_id
from promptstack.services.llm.http_clients import ProviderClient
from promptstack.services.llm.listening import Listener
from promptstack.services.llm.packing import EmbeddingLimits
from promptstack.services.llm.parameters import GenerationParameters
from promptstack.services.llm.reading import Part, Said
from promptstack.services.llm.requests import GenerationRequest, Message
from promptstack.services.llm.streamed import StreamedService
from promptstack.services.llm.tool_calls import tool_call
from promptstack.services.llm.vectors import vectors

GEMINI_URL = "https://generativelanguage.googleapis.com"
API_VERSION = "v1"
"""The SDK's default, set so that the environment can't change it."""
DIMENSIONS: Mapping[str, int] = {"gemini-embedding-001": 3_072, "gemini-embedding-2": 3_072}
"""The sizes of models' vectors where no request asks for another size."""
KNOWN_OPTIONS = frozenset(types.GenerateContentConfig.model_fields) - {
    "http_options",
    "should_return_http_response",
    "system_instruction",
    "temperature",
    "max_output_tokens",
    "stop_sequences",
    "seed",
    "candidate_count",
    "response_json_schema",
    "tools",
    "automatic_function_calling",
    "automatic_continuation",
    "continuation_token",
}
FINISH_REASONS: Mapping[str, str] = {"STOP": "stop", "MAX_TOKENS": "length"}
REFUSALS = frozenset(
    {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE"}
)


class GeminiService(StreamedService[genai.Client]):
    """Generations and embeddings from Gemini."""

    name = "gemini"
    wire = "gemini"
    official_url = GEMINI_URL
    key_setting = "GEMINI_API_KEY"
    _http: ProviderClient
    default_models: ClassVar[Mapping[Capability, str]] = {
        Capability.GENERATION: "gemini-2.5-flash",
        Capability.EMBEDDING: "gemini-embedding-001",
    }
    known_options: ClassVar[frozenset[str] | None] = KNOWN_OPTIONS
    takes_dimensions = True
    # 100 contents a batch and 2,048 tokens a text (ai.google.dev, "Embeddings"). 20,000 tokens a
    # call is Vertex AI's bound: the Gemini API names none.
    embedding_limits: ClassVar[EmbeddingLimits] = EmbeddingLimits(
        items=100, bytes=1_000_000, tokens=20_000
    )

    @classmethod
    def check_parameters(cls, model: str, parameters: GenerationParameters) -> None:
        """Also refuse strict tools."""
        super().check_parameters(model, parameters)
        if any(tool.strict for tool in parameters.tools):
            raise InvalidInput("Provider 'gemini' has no strict tools; leave strict out.")

    @classmethod
    def check_turns(cls, request: GenerationRequest) -> None:
        """Refuse names, and a system turn after another turn: Gemini has one system prompt."""
        request.check_system_first(cls.name)
        request.check_no_names("Provider 'gemini'")

    async def _generate(
        self, request: GenerationRequest, user_id: UUID | None, failures: int
    ) -> LLMResponse:
        asked = self._asked(request)
        answer = await self._answer(self._connected().aio.models.generate_content(**asked))
        return self._response(answer, request, read)

    async def _stream(
        self, request: GenerationRequest, user_id: UUID | None, failures: int, listener: Listener
    ) -> LLMResponse:
        asked = self._asked(request)
        models = self._connected().aio.models

        async def ask() -> None:
            async for _ in await models.generate_content_stream(**asked):
                pass

        assembly = ContentAssembly(listener)
        return await self._streamed(self._answer(ask()), request, read, assembly)

    def _asked(self, request: GenerationRequest) -> dict[str, Any]:
        """What the SDK is told. Raises `InvalidProviderRequest`."""
        self._check_again(request)
        try:
            config = _config(request)
        except ValidationError as error:
            raise InvalidProviderRequest(
                f"{self.name} does not take these options; see its GenerateContentConfig."
            ) from error
        contents = _contents(request.turns())
        return {"model": request.model, "contents": contents, "config": config}

    async def _embed(
        self, texts: Sequence[str], model: str, user_id: UUID | None, dimensions: int | None
    ) -> EmbeddingResponse:
        # One content per text: gemini-embedding-2 makes a single vector of a list of strings.
        contents: Any = [types.Content(parts=[types.Part(text=text)]) for text in texts]
        config = types.EmbedContentConfig(output_dimensionality=dimensions)
        ask = self._connected().aio.models.embed_content
        answer = await self._answer(ask(model=model, contents=contents, config=config))
        with self._reading(answer) as found:
            body = found.body
            used = body.part("usageMetadata", is_expected=True).count("promptTokenCount")
            if used is None:
                # The API may not say. Unknown usage would soon use up a run's cost limit.
                body.notes.add("the input tokens are an estimate")
                used = sum(map(self.estimate_tokens, texts))
            found.usage = Usage(used)
            rows, others = vectors(body.parts("embeddings"), "values", len(texts))
            known = dimensions or (DIMENSIONS.get(model) if self.is_official else None)
            if rows.shape[1] != (known or rows.shape[1]):
                raise ValueError(f"vectors of {model} have {rows.shape[1]} dimensions")
            return EmbeddingResponse(
                vectors=rows,
                others=others,
                model=model,
                input_tokens=used,
                provider_request_id=request_id(answer.headers),
                limits=limit_report(answer.headers),
                note=str(body.notes),
            )

    async def count_tokens(self, text: str, model: str) -> TokenCount:
        """Ask Gemini, which is free but rate-limited."""
        models = self._connected().aio.models
        answer = await self._answer(models.count_tokens(model=model, contents=text))
        with self._reading(answer) as found:
            return TokenCount(int(found.body.get("totalTokens")), is_exact=True)

    def _connect(self, api_key: str, base_url: str, timeout: httpx2.Timeout) -> genai.Client:
        self._http = ProviderClient(timeout)
        return genai.Client(
            api_key=api_key,
            vertexai=False,
            http_options=types.HttpOptions(
                base_url=base_url,
                api_version=self._api_version or API_VERSION,
                timeout=int(self._timeout * 1_000),
                # The SDK's own use of aiohttp would retry by itself, after up to ten seconds.
                httpx_async_client=self._http,
                retry_options=types.HttpRetryOptions(attempts=1),
            ),
        )

    async def _disconnect(self, client: genai.Client) -> None:
        await client.aio.aclose()
        client.close()
        # The client is ours, so the SDK does not close it.
        await self._http.aclose()

    async def _list_models(self) -> list[str]:
        answer = await self._answer(self._connected().aio.models.list())
        with self._reading(answer) as found:
            names = [str(model.get("name") or "") for model in found.body.parts("models")]
            return [name.removeprefix("models/") for name in names if name]

    async def _ask_nothing(self, kind: Capability, model: str) -> None:
        await self._list_models()  # the SDK sends no call without content


def _config(request: GenerationRequest) -> types.GenerateContentConfig:
    """The SDK's config, without what the request does not set. Raises `ValidationError`."""
    fields: dict[str, Any] = {
        "system_instruction": request.system_prompt() or None,
        "temperature": request.temperature,
        "max_output_tokens": request.max_tokens,
        "stop_sequences": list(request.stop) or None,
        "seed": request.seed,
        # Otherwise the SDK may make further calls by itself, which nobody counts.
        "automatic_continuation": False,
    }
    if request.json_schema is not None:
        fields["response_mime_type"] = "application/json"
        fields["response_json_schema"] = request.json_schema
    if request.tools:
        declared = [
            types.FunctionDeclaration(
                name=tool.name,
                description=tool.description,
                parameters_json_schema=tool.parameters_schema(),
            )
            for tool in request.tools
        ]
        fields["tools"] = [types.Tool(function_declarations=declared)]
        fields["automatic_function_calling"] = {"disable": True}
        if request.tool_choice is not None:
            fields["tool_config"] = {"function_calling_config": _tool_choice(request.tool_choice)}
    given = {name: value for name, value in fields.items() if value is not None}
    return types.GenerateContentConfig.model_validate(given | request.options)


def _tool_choice(choice: str) -> dict[str, Any]:
    modes = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
    if choice in modes:
        return {"mode": modes[choice]}
    return {"mode": "ANY", "allowed_function_names": [choice]}


def _contents(turns: Sequence[Message]) -> list[types.Content]:
    names = {call.id: call.name for turn in turns for call in turn.tool_calls}
    contents: list[types.Content] = []
    before = None
    for turn in turns:
        content = _content(turn, names)
        if turn.role == before == "tool":
            # Gemini requires the results of one turn's calls in one content.
            contents[-1].parts = [*(contents[-1].parts or []), *(content.parts or [])]
        elif turn.role != "system":
            contents.append(content)
        before = turn.role
    return contents


def _content(turn: Message, names: Mapping[str, str]) -> types.Content:
    if turn.role == "tool":
        # Gemini matches a result by the tool's name.
        name = names.get(turn.tool_call_id or "", turn.name or turn.tool_call_id)
        result = types.FunctionResponse(name=name, response={"result": turn.content})
        return types.Content(role="user", parts=[types.Part(function_response=result)])
    parts = [types.Part(text=turn.content)] if turn.content else []
    parts += [
        types.Part(function_call=types.FunctionCall(name=call.name, args=dict(call.arguments)))
        for call in turn.tool_calls
    ]
    return types.Content(role="model" if turn.role == "assistant" else "user", parts=parts)


def read(answer: Part) -> Said:
    """Read an answer, and note what is malformed."""
    candidates = answer.parts("candidates")
    candidate = candidates[0] if candidates else Part(None, answer.notes)
    reason = candidate.word("finishReason")
    blocked = answer.part("promptFeedback").word("blockReason")
    content = candidate.part("content")
    parts = content.parts("parts")
    texts = [part.text("text") for part in parts if part.get("thought") is not True]
    told = [text for text in texts if text is not None]
    is_empty = bool(candidate.fields) and content.fields is not None and not content.get("parts")
    calls = [part.part("functionCall") for part in parts if part.get("functionCall")]
    made = tuple(
        found
        for position, call in enumerate(calls)
        # Gemini may leave the id out.
        for found in tool_call(
            call, position, call.get("id") or f"call_{position}", call.get("args")
        )
    )
    usage = answer.part("usageMetadata", is_expected=True)
    # Zero is left out.
    written = usage.count("candidatesTokenCount", None if any(told) else 0)
    thought = usage.count("thoughtsTokenCount", 0)
    return Said(
        text="".join(told) if told or is_empty or (parts and not texts) else None,
        usage=Usage(
            input_tokens=usage.count("promptTokenCount"),
            # Thinking is billed as output.
            output_tokens=None if written is None or thought is None else written + thought,
            cached_tokens=usage.count("cachedContentTokenCount", 0),
        ),
        model=answer.word("modelVersion"),
        finish_reason="tool_calls" if made else reason and _finish_reason(reason),
        tool_calls=made,
        refusal=blocked or (reason if reason in REFUSALS else None),
        request_id=request_id({"x-request-id": answer.word("responseId") or ""}),
    )


def _finish_reason(reason: str) -> str:
    return FINISH_REASONS.get(reason, reason.lower())
