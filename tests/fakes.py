"""A provider that a test sets up, instead of a real one."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Self
from uuid import UUID

import numpy as np

from promptstack.services.llm.base import (
    Capability,
    EmbeddingLimits,
    EmbeddingResponse,
    LLMResponse,
    LLMService,
)
from promptstack.services.llm.requests import GenerationRequest
from promptstack.tasks.worker_services import WorkerServices

BATCH = 2
"""Passages that the fake provider takes in one call."""


class FakeProvider:
    """What a fake provider was asked, and what it does then; a test sets both."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.batches: list[list[str]] = []
        self.on_call: Callable[[], Awaitable[None] | None] = lambda: None
        """Called on the event loop as the request leaves; may wait, look around, or raise."""
        self.answer: Callable[[str], str] = lambda prompt: f"You said: {prompt}"
        self.usage = 2

    @property
    def calls(self) -> int:
        return len(self.prompts) + len(self.batches)

    @property
    def embedded(self) -> list[str]:
        return [text for batch in self.batches for text in batch]

    async def called(self) -> None:
        waits = self.on_call()
        if waits is not None:
            await waits


def employ(stack: WorkerServices, provider: FakeProvider) -> None:
    """Let `stack` be a live worker that asks this provider."""

    class Fake(LLMService):
        is_limited = False  # the limiter has tests of its own
        name = "fake"
        default_models: ClassVar = {Capability.GENERATION: "f-1", Capability.EMBEDDING: "f-1"}
        embedding_limits = EmbeddingLimits(items=BATCH, bytes=10_000)

        async def _generate(
            self, request: GenerationRequest, user_id: UUID | None, failures: int
        ) -> LLMResponse:
            provider.prompts.append(request.prompt or "")
            await provider.called()
            return LLMResponse(
                provider.answer(request.prompt or ""), "f-1", provider.usage, 3, "stop"
            )

        async def _embed(
            self, texts: Sequence[str], model: str, user_id: UUID | None
        ) -> EmbeddingResponse:
            provider.batches.append(list(texts))
            await provider.called()
            return EmbeddingResponse(np.ones((len(texts), 3), np.float32), model, len(texts))

        def estimate_tokens(self, text: str) -> int:
            return len(text)

        async def is_available(self) -> bool:
            return True

    stack.factory.register("fake", Fake)
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
