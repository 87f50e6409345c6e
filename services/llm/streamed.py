"""Providers on a network whose answers may come as streams."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import httpx2

from promptstack.services.llm.answers import LLMResponse
from promptstack.services.llm.reading import Part, Said
from promptstack.services.llm.remote import RemoteService
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.llm.streaming import Assembly, StreamedAnswer
from promptstack.services.llm.translation import broken_off, cut_off
from promptstack.services.llm.transport import heard_by

Client = TypeVar("Client")


class StreamedService(RemoteService[Client]):
    """A provider that can stream its answers."""

    async def _streamed(
        self,
        ask: Awaitable[httpx2.Response],
        request: GenerationRequest,
        read: Callable[[Part], Said],
        assembly: Assembly,
    ) -> LLMResponse:
        """Await a call whose answer is a stream, and read it as if it had come at once.

        Raises what `_response` raises, and the errors of answers that are broken off or cut off.
        """
        heard = StreamedAnswer(assembly)
        with heard_by(heard):
            answer = await ask
        if not heard.has_begun:  # the server has no streams
            response = self._response(answer, request, read)
            assembly.listener.hear(response.text)
            return response
        heard.end()
        if assembly.error is not None:
            raise broken_off(self.name, assembly.error, answer, self.key_setting, self.wire)
        if not assembly.is_complete:
            raise cut_off(self.name, answer)
        whole = httpx2.Response(
            answer.status_code,
            headers=answer.headers,
            content=json.dumps(assembly.whole()).encode(),
        )
        response = self._response(whole, request, read)
        if response.tokens_used is not None:
            return response
        # Not every server counts what it streams. Unknown usage would pass by budgets.
        usage = assembly.listener.usage(self.estimate_tokens(request.text()))
        note = "; ".join(filter(None, (response.note, "its tokens are an estimate")))
        return replace(response, **vars(usage), note=note) if usage else response
