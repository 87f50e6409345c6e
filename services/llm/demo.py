"""The demonstration provider: no model, no network, the same answer every time.

Its options imitate a slow or failing provider.
"""

import asyncio
import re
from typing import ClassVar
from uuid import UUID

from promptstack.services.llm.answers import Capability, LLMResponse
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.errors import InvalidProviderRequest, Overloaded
from promptstack.services.llm.listening import Listener
from promptstack.services.llm.requests import GenerationRequest

MODEL = "demo-1"
QUOTED_WORDS = 12


class DemoService(LLMService):
    """Answers with a marked echo of the prompt.

    Options: `delay_seconds` (how long a call takes; in a stream, the words come one by one),
    `fail_times` (that many attempts of a job fail as if the provider were overloaded), `fail_with`
    ("overloaded" or "invalid").
    """

    name = "demo"
    is_limited = False
    default_models: ClassVar = {Capability.GENERATION: MODEL}
    known_models: ClassVar = {Capability.GENERATION: frozenset({MODEL})}
    unsupported = frozenset({"json_schema", "tools"})
    known_options = frozenset({"delay_seconds", "fail_times", "fail_with"})

    async def _generate(
        self, request: GenerationRequest, user_id: UUID | None, failures: int
    ) -> LLMResponse:
        delay = _number(request.options.get("delay_seconds", 0), "delay_seconds")
        await asyncio.sleep(delay)
        return self._answer(request, failures)

    async def _stream(
        self, request: GenerationRequest, user_id: UUID | None, failures: int, listener: Listener
    ) -> LLMResponse:
        delay = _number(request.options.get("delay_seconds", 0), "delay_seconds")
        response = self._answer(request, failures)
        words = re.findall(r"\S+\s*", response.text)
        for word in words:
            await asyncio.sleep(delay / len(words))
            listener.hear(word)
        return response

    def _answer(self, request: GenerationRequest, failures: int) -> LLMResponse:
        options = request.options
        if failures < _number(options.get("fail_times", 0), "fail_times"):
            if options.get("fail_with") == "invalid":
                raise InvalidProviderRequest("The demo provider was told to refuse this request.")
            raise Overloaded("The demo provider was told to fail this attempt.", status=503)
        words = request.conversation()[-1].content.split()
        quoted = " ".join(words[:QUOTED_WORDS]) + (" ..." if len(words) > QUOTED_WORDS else "")
        text = f"[demonstration, no model was asked] You wrote {len(words)} words: {quoted}"
        return LLMResponse(
            text=text,
            model=request.model,
            input_tokens=sum(self.estimate_tokens(turn.content) for turn in request.conversation()),
            output_tokens=self.estimate_tokens(text),
            finish_reason="stop",
        )

    async def is_available(self) -> bool:
        """Always: it is part of this process."""
        return True


def _number(value: object, option: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 3600:
        raise InvalidProviderRequest(f"The demo option {option} must be a number from 0 to 3600.")
    return float(value)
