"""The two clients: one for programs that wait, one for asyncio. They have the same methods."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2

from promptstack_client.events import TextFeed
from promptstack_client.feeds import Feed
from promptstack_client.methods import AnySender, Resource, Streamed
from promptstack_client.models.events import JobEvent, Piece, RunEvent
from promptstack_client.models.jobs import Job
from promptstack_client.models.operations import Operation
from promptstack_client.models.runs import Run
from promptstack_client.options import GenerationOptions
from promptstack_client.resources.documents import Collections, Documents, Search
from promptstack_client.resources.jobs import Jobs
from promptstack_client.resources.operations import Operations
from promptstack_client.resources.runs import Runs
from promptstack_client.resources.usage import UsageResource
from promptstack_client.resources.webhooks import Webhooks
from promptstack_client.sending import AsyncSender, Flow, Sender
from promptstack_client.settings import Settings

TIMEOUT = 60.0
MAX_RETRIES = 6
Thing = TypeVar("Thing", bound=Job | Run | Operation)
_WAITS: dict[type, Any] = {Job: Jobs.wait, Run: Runs.wait, Operation: Operations.wait}


class _Client(Resource[AnySender]):
    """What a client offers: a resource for each thing, and short names for what is used most."""

    def __init__(self, sender: AnySender) -> None:
        super().__init__(sender)
        self.jobs = Jobs(sender)
        self.runs = Runs(sender)
        self.collections = Collections(sender)
        self.documents = Documents(sender)
        self.operations = Operations(sender)
        self.usage = UsageResource(sender)
        self.webhooks = Webhooks(sender)

    generate = Jobs.generate
    embed = Jobs.embed
    bulk = Jobs.bulk
    run = Runs.generate
    search = Search.search

    @Streamed
    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Feed[Piece]:
        """Enqueue a generation, and read its text as it is produced.

        A piece of the kind `text` has more of it; one of the kind `restart` says that the text
        begins again; the last one, of the kind `end`, has the whole job. Raises `Unsuccessful`
        where the job ends without a text.
        """
        options["stream"] = True
        return TextFeed(first=Jobs.generate.call(self, prompt, messages=messages, **options))

    @Streamed
    def events(self, thing: Job | Run, *, since: str | None = None) -> Feed[JobEvent | RunEvent]:
        """Watch a job or a run until its end; see `jobs.events` and `runs.events`."""
        if isinstance(thing, Run):
            return Runs.events.ask(self, thing, since=since)
        return Jobs.events.ask(self, thing, since=since)


def _ending(thing: Thing, timeout: float | None) -> Flow[Thing]:
    """Ask until it has ended."""
    wait = next(wait for kind, wait in _WAITS.items() if isinstance(thing, kind))
    return wait.ask(None, thing, timeout=timeout)  # type: ignore[no-any-return]


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

    def wait(self, thing: Thing, *, timeout: float | None = None) -> Thing:
        """Wait for the end of a job, a run or an operation. Raises `WaitTimedOut`; it goes on."""
        return self._sender.drive(_ending(thing, timeout))

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

    async def wait(self, thing: Thing, *, timeout: float | None = None) -> Thing:  # noqa: ASYNC109 - it is the server that is asked for so long
        """Wait for the end of a job, a run or an operation. Raises `WaitTimedOut`; it goes on."""
        return await self._sender.drive(_ending(thing, timeout))

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
