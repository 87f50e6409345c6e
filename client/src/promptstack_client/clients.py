"""The two clients: one for programs that wait, one for asyncio. They have the same methods."""

from types import TracebackType
from typing import Self

import httpx2

from promptstack_client.methods import AnySender, Resource
from promptstack_client.resources.jobs import Jobs
from promptstack_client.resources.runs import Runs
from promptstack_client.resources.usage import UsageOf
from promptstack_client.sending import AsyncSender, Sender
from promptstack_client.settings import Settings

TIMEOUT = 60.0
MAX_RETRIES = 6


class _Client(Resource[AnySender]):
    """What a client offers: a resource for each thing, and short names for what is used most."""

    def __init__(self, sender: AnySender) -> None:
        super().__init__(sender)
        self.jobs = Jobs(sender)
        self.runs = Runs(sender)
        self.usage = UsageOf(sender)

    generate = Jobs.generate
    embed = Jobs.embed


class Client(_Client[Sender]):
    """A client whose methods wait for their answers; threads may share it.

    `url` and `api_key` are taken from PROMPTSTACK_URL and PROMPTSTACK_API_KEY where they are not
    given. `timeout` is how many seconds the server may say nothing; `max_retries` how often a
    request is sent again where no answer came, or the server has no room for now.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = TIMEOUT,
        max_retries: int = MAX_RETRIES,
        http: httpx2.Client | None = None,
    ) -> None:
        settings = Settings.read(url, api_key, timeout=timeout, max_retries=max_retries)
        super().__init__(Sender(settings, http))

    def close(self) -> None:
        """Close the connections."""
        self._sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClient(_Client[AsyncSender]):
    """A client for asyncio; its methods are those of `Client`, to be awaited."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = TIMEOUT,
        max_retries: int = MAX_RETRIES,
        http: httpx2.AsyncClient | None = None,
    ) -> None:
        settings = Settings.read(url, api_key, timeout=timeout, max_retries=max_retries)
        super().__init__(AsyncSender(settings, http))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._sender.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
