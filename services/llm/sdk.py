"""What the SDKs of OpenAI and Anthropic have in common: both come from one code generator."""

from collections.abc import Mapping
from typing import Any, TypeVar

import httpx2

from promptstack.services.llm.errors import ProviderError
from promptstack.services.llm.http_clients import ProviderClient, SignedHead
from promptstack.services.llm.streamed import StreamedService
from promptstack.services.validation.json_text import dump_json

Client = TypeVar("Client")
SIGN_AGAIN_SECONDS = 60.0
MOST_HEADS = 1_000


class SDKService(StreamedService[Client]):
    """A provider whose SDK can send a request to any path and return the raw answer.

    The SDK addresses and signs the first request to a path. Until `SIGN_AGAIN_SECONDS` later, or
    until one is refused, further ones leave under the same head: all that differs is the body, and
    making the same head anew takes longer than all else that a call needs of the processor.
    """

    _http: ProviderClient

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._heads: dict[tuple[str, str], tuple[SignedHead, float]] = {}

    async def aclose(self) -> None:
        self._heads.clear()
        await super().aclose()

    async def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> httpx2.Response:
        """POST `body`, or GET when there is none."""
        client: Any = self._connected()
        if body is None:
            return await self._answer(client.get(path, cast_to=httpx2.Response))
        form, content = (path, self._place_of(body)), dump_json(body)
        head, until = self._heads.get(form, (None, 0.0))
        if head is None or self._clock() >= until:
            answer = await self._answer(self._post(client, path, body, content))
            self._keep_head(form, answer)
            return answer
        try:
            return await self._answer(self._http.send_again(head, content))
        except ProviderError:
            self._heads.pop(form, None)
            raise

    def _post(self, client: Any, path: str, _: Mapping[str, Any], content: bytes) -> Any:
        """Let the SDK address and sign a request. Its own JSON encoder is 10 times as slow."""
        address = f"{str(client.base_url).rstrip('/')}{path}"
        return client.post(address, cast_to=httpx2.Response, content=content)

    def _place_of(self, _: Mapping[str, Any]) -> str:
        """What of the body the address depends on."""
        return ""

    def _keep_head(self, form: tuple[str, str], answer: httpx2.Response) -> None:
        if answer.history or "Idempotency-Key" in answer.request.headers:
            return  # it came from another place, or its head belongs to this one request
        if len(self._heads) >= MOST_HEADS:
            self._heads.clear()
        self._heads[form] = SignedHead.of(answer.request), self._clock() + SIGN_AGAIN_SECONDS

    def _names_in(self, answer: httpx2.Response) -> list[str]:
        with self._reading(answer) as found:
            return [str(model.get("id")) for model in found.body.parts("data") if model.get("id")]
