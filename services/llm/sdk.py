"""What the SDKs of OpenAI and Anthropic have in common: both come from one code generator."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import httpx2

from promptstack.services.llm.errors import ProviderError
from promptstack.services.llm.remote import RemoteService
from promptstack.services.llm.translation import broken, timed_out, unusable

Client = TypeVar("Client")


class SDKService(RemoteService[Client]):
    """A provider whose SDK can send a request to any path and return the raw answer."""

    timeout_error: ClassVar[type[Exception]]
    """What the SDK raises when no answer comes in time."""
    connection_error: ClassVar[type[Exception]]
    """What the SDK raises when it can't connect or the connection breaks."""

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
        # The aiohttp transport reports each broken or refused connection as a ConnectTimeout, which
        # the SDK reports as a timeout.
        if isinstance(error.__cause__, httpx2.ConnectTimeout):
            return broken(self.name, error)
        if isinstance(error, (self.timeout_error, TimeoutError)):
            return timed_out(self.name)
        if isinstance(error, self.connection_error):
            return broken(self.name, error)
        return unusable(self.name)
