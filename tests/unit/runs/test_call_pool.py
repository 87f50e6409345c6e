"""The calls of a shard on the event loop: however it ends, nobody waits for it for ever."""

import asyncio
import threading
from asyncio import Semaphore
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, cast

import pytest

from promptstack.services.execution.content_calls import Call
from promptstack.services.limiter.limited_calls import LimitedCalls
from promptstack.services.llm.answers import LLMResponse
from promptstack.services.llm.event_loop import EventLoop
from promptstack.services.runs.shards.call_pool import (
    CallAnswered,
    CallPermitted,
    CallPool,
    RecordedCall,
)
from promptstack.services.runs.shards.workload import Workload

AN_ANSWER = LLMResponse(
    text="Done.", model="any", input_tokens=1, output_tokens=1, finish_reason="stop"
)


class StubbornCalls:
    """Calls that take their time to close."""

    def __init__(self) -> None:
        self.made = threading.Event()
        self.closing = threading.Event()
        self.may_close = asyncio.Event()
        self.given_back: list[Any] = []

    async def enter(self, *_: Any) -> None:
        return None

    async def make(self, *_: Any, **__: Any) -> None:
        self.made.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.closing.set()
            await self.may_close.wait()
            raise

    async def give_back(self, permit: Any) -> None:
        self.given_back.append(permit)


class SlowToSettle(StubbornCalls):
    """Calls whose limiter is long told what they took."""

    async def make(self, _provider: str, _permit: None, ask: Any, **_: Any) -> None:
        await ask()
        await super().make()


class NoWorkload:
    provider, model, service = "none", "none", None

    def need(self, *_: Any) -> None:
        return None

    async def make(self, *_: Any) -> LLMResponse:
        return AN_ANSWER


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    yield made
    made.close()


def test_a_cancel_while_calls_are_being_closed_lets_nobody_wait(loop: EventLoop) -> None:
    calls = StubbornCalls()
    pool = CallPool(cast("Workload", NoWorkload()), cast("LimitedCalls", calls), Semaphore(1))
    running = loop.submit(pool.run())
    pool.wait_until_running(running)
    call = Call([])
    pool.request_permits([call])
    (event,) = pool.events(10.0, 1)
    assert isinstance(event, CallPermitted)
    first, second = (RecordedCall(call, None, number, Decimal(0)) for number in (1, 2))
    pool.make([first, second], 60.0)
    assert calls.made.wait(10.0)
    ending = threading.Thread(target=pool.end)
    ending.start()
    assert calls.closing.wait(10.0)
    running.cancel()

    async def let_close() -> None:
        calls.may_close.set()

    loop.run(let_close())
    ending.join(10.0)
    assert not ending.is_alive()
    # The second was recorded and not sent: only one may be under way.
    assert pool.has_left(first)
    assert not pool.has_left(second)


def test_an_answer_that_came_before_its_call_was_cancelled_is_not_lost(loop: EventLoop) -> None:
    calls = SlowToSettle()
    calls.may_close.set()
    pool = CallPool(cast("Workload", NoWorkload()), cast("LimitedCalls", calls), Semaphore(1))
    running = loop.submit(pool.run())
    pool.wait_until_running(running)
    recorded = RecordedCall(Call([]), None, 1, Decimal(0))
    pool.make([recorded], 60.0)
    assert calls.made.wait(10.0)
    running.cancel()
    pool.end()
    (event,) = pool.events_now()
    assert isinstance(event, CallAnswered)
    assert event.recorded is recorded
    assert event.answer is AN_ANSWER
