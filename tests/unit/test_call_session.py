"""The calls of a shard on the event loop: however it ends, nobody waits for it for ever."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from promptstack.services.limiter.limited_calls import LimitedCalls
from promptstack.services.llm.base import LLMResponse, LLMService
from promptstack.services.llm.event_loop import EventLoop
from promptstack.services.runs.shards.call_pool import Answered, CallSession, Permitted, Sent
from promptstack.services.runs.shards.workload import Asking, Call

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


class NoAsking:
    provider, model = "none", "none"

    def need(self, *_: Any) -> None:
        return None

    async def ask(self, *_: Any) -> LLMResponse:
        return AN_ANSWER


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    yield made
    made.close()


def test_a_cancel_while_calls_are_being_closed_lets_nobody_wait(loop: EventLoop) -> None:
    calls = StubbornCalls()
    gate = asyncio.Semaphore(1)
    session = CallSession(
        cast("Asking", NoAsking()),
        cast("LLMService", None),
        cast("LimitedCalls", calls),
        lambda: gate,
    )
    running = loop.submit(session.run())
    session.wait_until_begun(running)
    call = Call([])
    session.ask_leave([call])
    (event,) = session.events(10.0, 1)
    assert isinstance(event, Permitted)
    session.send([Sent(call, None, 1, 0), Sent(call, None, 2, 0)], 60.0)
    assert calls.made.wait(10.0)
    ending = threading.Thread(target=session.end)
    ending.start()
    assert calls.closing.wait(10.0)
    running.cancel()

    async def let_close() -> None:
        calls.may_close.set()

    loop.run(let_close())
    ending.join(10.0)
    assert not ending.is_alive()
    # The second was recorded and had not left: there was one place.
    assert session.has_left(Sent(call, None, 1, 0))
    assert not session.has_left(Sent(call, None, 2, 0))


def test_an_answer_that_came_before_its_call_was_cancelled_is_not_lost(loop: EventLoop) -> None:
    calls = SlowToSettle()
    calls.may_close.set()
    gate = asyncio.Semaphore(1)
    session = CallSession(
        cast("Asking", NoAsking()),
        cast("LLMService", None),
        cast("LimitedCalls", calls),
        lambda: gate,
    )
    running = loop.submit(session.run())
    session.wait_until_begun(running)
    sent = Sent(Call([]), None, 1, 0)
    session.send([sent], 60.0)
    assert calls.made.wait(10.0)
    running.cancel()
    session.end()
    (event,) = session.events_now()
    assert isinstance(event, Answered)
    assert event.sent is sent
    assert event.answer is AN_ANSWER
