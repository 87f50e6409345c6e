"""A provider that a test sets up, instead of a real one."""

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Self, cast
from uuid import UUID

import numpy as np
import numpy.typing as npt

from promptstack.repositories.errors import LedgerUnavailable
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.execution.retrying_ledger import RetryingLedger
from promptstack.services.llm.answers import Capability, EmbeddingResponse, LLMResponse
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.packing import EmbeddingLimits
from promptstack.services.llm.requests import GenerationRequest
from promptstack.tasks.worker_services import WorkerServices


class FakeProvider:
    """What a fake provider was asked, and what it does then; a test sets both.

    A subclass is a provider with manners of its own.
    """

    name: ClassVar[str] = "fake"
    limits: ClassVar[EmbeddingLimits] = EmbeddingLimits(items=64, bytes=1_000_000)

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.requests: list[GenerationRequest] = []
        self.batches: list[list[str]] = []
        self.on_call: Callable[[], Awaitable[None] | None] = lambda: None
        """Called on the event loop as the request leaves; may wait, look around, or raise."""
        self.answer: Callable[[str], str] = lambda prompt: f"You said: {prompt}"
        self.usage = 2
        self.service = _service_of(self)

    @property
    def calls(self) -> int:
        return len(self.prompts) + len(self.batches)

    @property
    def embedded(self) -> list[str]:
        return [text for batch in self.batches for text in batch]

    @property
    def asked(self) -> Counter[str]:
        """How often each prompt and text was in a call."""
        return Counter([*self.prompts, *self.embedded])

    def serve(self, stack: WorkerServices) -> Self:
        """Be a provider of this stack."""
        stack.factory.register(self.name, self.service)
        return self

    async def called(self, texts: Sequence[str], failures: int) -> None:
        """A request leaves, of a job that has failed so often before."""
        waits = self.on_call()
        if waits is not None:
            await waits

    def tokens(self, text: str) -> int:
        return len(text)

    def vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.ones((len(texts), 3), np.float32)


def _service_of(provider: FakeProvider) -> type[LLMService]:
    model_name = f"{provider.name}-1"

    class Fake(LLMService):
        is_limited = False  # the limiter has tests of its own
        name = provider.name
        default_models: ClassVar = dict.fromkeys(Capability, model_name)
        embedding_limits = provider.limits

        async def _generate(
            self, request: GenerationRequest, user_id: UUID | None, failures: int
        ) -> LLMResponse:
            prompt = request.text()
            provider.prompts.append(prompt)
            provider.requests.append(request)
            await provider.called([prompt], failures)
            return LLMResponse(provider.answer(prompt), model_name, provider.usage, 3, "stop")

        async def _embed(
            self, texts: Sequence[str], model: str, user_id: UUID | None, dimensions: int | None
        ) -> EmbeddingResponse:
            provider.batches.append(list(texts))
            await provider.called(texts, 0)
            return EmbeddingResponse(provider.vectors(texts), model, len(texts))

        def estimate_tokens(self, text: str) -> int:
            return provider.tokens(text)

        async def is_available(self) -> bool:
            return True

    return Fake


class HeldProvider(FakeProvider):
    """Answers when it is told to, in the order in which it was asked."""

    name = "held"

    def __init__(self) -> None:
        super().__init__()
        self.held: list[asyncio.Event] = []

    async def called(self, texts: Sequence[str], failures: int) -> None:
        self.held.append(asyncio.Event())
        await self.held[-1].wait()

    async def let_go(self, number: int) -> None:
        self.held[number].set()


def employ(stack: WorkerServices, provider: FakeProvider) -> None:
    """Let `stack` be a live worker that asks this provider."""
    provider.serve(stack)
    stack.heartbeat.beat()


def raises(*errors: BaseException) -> Callable[[], None]:
    """Raise these on the first calls, one each; then nothing."""
    left = iter(errors)

    def act() -> None:
        for error in left:
            raise error

    return act


class Gate:
    """Holds the provider's calls on the event loop until a test opens it."""

    def __init__(self, stack: WorkerServices) -> None:
        self._loop = stack.loop
        self._open = asyncio.Event()
        self._reached = threading.Event()

    async def __call__(self) -> None:
        self._reached.set()
        await self._open.wait()

    def wait(self) -> None:
        """Until a call is held."""
        assert self._reached.wait(30)

    def open(self) -> None:
        async def set_() -> None:
            self._open.set()

        self._loop.run(set_())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()  # a test that fails must not wait for the call's time-out


class Forgetful:
    """A ledger that commits, and whose answer is lost: each second time from the second on."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._times = 0
        self.is_forgetful = True

    @contextmanager
    def transaction(self) -> Iterator[UnitOfWork]:
        with self._ledger.transaction() as unit:
            yield unit
        self._times += 1
        # The claim comes first: who doesn't hear of it lets the job go.
        if self.is_forgetful and self._times > 1 and self._times % 2 == 0:
            raise LedgerUnavailable("The connection broke after the commit.")

    def ping(self) -> str:
        return self._ledger.ping()


@contextmanager
def lost_commits(stack: WorkerServices) -> Iterator[None]:
    """Let the worker's commits be lost; to be said before anything works on a job."""
    forgetful = Forgetful(stack.ledger)
    stack.retrying_ledger = RetryingLedger(
        cast("Ledger", forgetful), stack.active_jobs, retry_seconds=0.0
    )
    yield
    forgetful.is_forgetful = False
