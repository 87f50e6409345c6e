"""What the SDKs of OpenAI and Anthropic have in common: both come from one code generator."""

from collections.abc import Mapping
from typing import Any, TypeVar

import httpx2

from promptstack.services.llm.remote import RemoteService
from promptstack.services.validation.json_text import dump_json

Client = TypeVar("Client")


class SDKService(RemoteService[Client]):
    """A provider whose SDK can send a request to any path and return the raw answer."""

    async def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> httpx2.Response:
        """POST `body`, or GET when there is none."""
        client: Any = self._connected()
        if body is None:
            return await self._answer(client.get(path, cast_to=httpx2.Response))
        return await self._answer(self._post(client, path, body))

    def _post(self, client: Any, path: str, body: Mapping[str, Any]) -> Any:
        """Let the SDK address and sign a request. Its own JSON encoder is 10 times as slow."""
        address = f"{str(client.base_url).rstrip('/')}{path}"
        return client.post(address, cast_to=httpx2.Response, content=dump_json(body))

    def _names_in(self, answer: httpx2.Response) -> list[str]:
        with self._reading(answer) as found:
            return [str(model.get("id")) for model in found.body.parts("data") if model.get("id")]
