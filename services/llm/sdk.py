"""What the SDKs of OpenAI and Anthropic have in common: one generator writes both."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import httpx2

from promptstack.services.llm.errors import ProviderError
from promptstack.services.llm.remote import RemoteService
from promptstack.services.llm.translation import broken, timed_out, unusable

Client = TypeVar("Client")


class SDKService(RemoteService[Client]):
    """A provider whose SDK asks any path for an answer as it came."""

    timeout_error: ClassVar[type[Exception]]
    """The SDK's own, raised where no answer came in time."""
    connection_error: ClassVar[type[Exception]]
    """The SDK's own, raised where a connection broke or there was none."""

    async def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> httpx2.Response:
        """POST `body`, or GET when there is none."""
        client: Any = self._connected()
        if body is None:
            return await self._answer(client.get(path, cast_to=httpx2.Response))
        return await self._answer(client.post(path, cast_to=httpx2.Response, body=body))

    def _names_in(self, answer: httpx2.Response) -> list[str]:
        with self._reading(answer) as found:
            return [str(model.get("id")) for model in found.body.parts("data") if model.get("id")]

    def _no_answer(self, error: Exception) -> ProviderError:
        # The aiohttp transport names every broken or refused connection a ConnectTimeout, and the
        # SDK then calls it a timeout.
        if isinstance(error.__cause__, httpx2.ConnectTimeout):
            return broken(self.name, error)
        if isinstance(error, (self.timeout_error, TimeoutError)):
            return timed_out(self.name)
        if isinstance(error, self.connection_error):
            return broken(self.name, error)
        return unusable(self.name)
