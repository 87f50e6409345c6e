"""The calls of a shard on the event loop; the shard's thread receives what happens as events."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any

from promptstack.config.errors import PromptStackError
from promptstack.services.execution.active_jobs import HandedBack
from promptstack.services.execution.content_calls import Call
from promptstack.services.execution.provider_calls import known
from promptstack.services.limiter.limited_calls import LimitedCalls
from promptstack.services.limiter.limiter import Permit
from promptstack.services.runs.shards.workload import Answer, Workload

LOOK_SECONDS = 0.1
LINGER_A_CALL, LONGEST_LINGER = 0.00015, 0.03
"""After the first event, wait this many seconds a call for more of them. Events that come together
are stored together, and one transaction for twenty calls costs no more than for one. With few calls
few come together, and a longer wait would only leave their slots empty."""


@dataclass(frozen=True, eq=False)
class CallPermitted:
    """The limiter lets a call leave."""

    call: Call
    permit: Permit | None
    number: int
    """Numbers the calls of the shard's attempt, so that writing one twice makes one row."""


@dataclass(frozen=True, eq=False)
class CallRefused:
    """The limiter doesn't let a call leave; it was not made."""

    call: Call
    error: PromptStackError


@dataclass(frozen=True, eq=False)
class RecordedCall:
    """A call whose attempt is on record, so that it may leave."""

    call: Call
    permit: Permit | None
    attempt_id: int
    reserved_usd: Decimal
    """The share of the run's cost limit that is reserved for it."""


@dataclass(frozen=True, eq=False)
class CallAnswered:
    """A call has its answer."""

    recorded: RecordedCall
    answer: Answer


@dataclass(frozen=True, eq=False)
class CallFailed:
    """A call failed, or its answer can't be used."""

    recorded: RecordedCall
    error: PromptStackError
    answer: Answer | None = None
    """The answer that was paid for and can't be used."""


Event = CallPermitted | CallRefused | CallAnswered | CallFailed


class CallPool:
    """Runs calls until it is ended or cancelled."""

    def __init__(
        self,
        workload: Workload,
        calls: LimitedCalls,
        concurrency: AbstractAsyncContextManager[None],
    ) -> None:
        """Take `concurrency`, which bounds the calls that are sent."""
        self._workload = workload
        self._calls = calls
        self._concurrency = concurrency
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        """None only ends a wait."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._left: set[RecordedCall] = set()
        self._is_held = False
        self._numbers = count()
        self._running = threading.Event()
        self._ended = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None

    async def run(self) -> None:
        """Accept calls until `end`. If cancelled, close them all."""
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._running.set()
        try:
            await self._over.wait()
        finally:
            self._over.set()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                # Also if a cancel comes just now: the shard's thread waits for this.
                self._ended.set()

    def wait_until_running(self, future: Future[None]) -> None:
        """Wait until calls can be made. Raises `HandedBack` if `future`, its run, has ended."""
        while not self._running.wait(LOOK_SECONDS):
            if future.done():
                raise HandedBack

    def request_permits(self, calls: Iterable[Call]) -> None:
        """Ask the limiter for calls: each becomes `CallPermitted` or `CallRefused`."""
        asked = list(calls)
        for call in asked:
            # In this thread: a provider's own tokenizer takes up to a fifth of a second. What is
            # raised is raised again below, and tells why the call is refused.
            with suppress(Exception):
                self._workload.need(call)
        self._start([self._enter(call) for call in asked])

    def make(self, recorded: Iterable[RecordedCall], seconds_left: float) -> None:
        """Make calls: each becomes `CallAnswered` or `CallFailed`."""
        self._start([self._make(one, seconds_left) for one in recorded])

    def give_back(self, permits: Iterable[Permit | None]) -> None:
        """Give back the permits of calls that are not made."""
        for permit in permits:
            # Also after the end: the limiter would renew the lease forever.
            if permit is not None and self._loop is not None:
                asyncio.run_coroutine_threadsafe(self._calls.give_back(permit), self._loop)

    def hold(self) -> None:
        """Let no more calls leave, not even recorded ones that wait for the semaphore."""
        self._is_held = True

    def has_left(self, recorded: RecordedCall) -> bool:
        """Whether a recorded call was sent, and doesn't wait for the semaphore any more."""
        return recorded in self._left

    def forget(self, settled: Iterable[RecordedCall]) -> None:
        """Let go of calls that are stored, with their texts."""
        self._left.difference_update(settled)

    def wake(self) -> None:
        """End a wait for events. Any thread may call this."""
        self._events.put(None)

    def end(self) -> None:
        """Close all calls, and wait until they are closed."""
        if self._loop is not None and self._over is not None and self._running.is_set():
            self._loop.call_soon_threadsafe(self._over.set)
            self._ended.wait()

    def events(self, seconds: float, calls: int) -> list[Event]:
        """Wait for events of `calls` calls, up to `seconds` for the first one."""
        try:
            first = self._events.get(timeout=max(0.0, seconds))
        except Empty:
            return []
        if first is None:
            return self.events_now()
        time.sleep(min(LONGEST_LINGER, calls * LINGER_A_CALL))
        return [first, *self.events_now()]

    def events_now(self) -> list[Event]:
        """The events that are there."""
        found: list[Event] = []
        while True:
            try:
                event = self._events.get_nowait()
            except Empty:
                return found
            if event is not None:
                found.append(event)

    def _start(self, coroutines: list[Coroutine[Any, Any, None]]) -> None:
        if coroutines and self._loop is not None:
            self._loop.call_soon_threadsafe(self._start_on_loop, coroutines)

    def _start_on_loop(self, coroutines: list[Coroutine[Any, Any, None]]) -> None:
        if self._over is None or self._over.is_set():
            for coroutine in coroutines:
                coroutine.close()
            return
        for coroutine in coroutines:
            task = asyncio.get_running_loop().create_task(coroutine)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _enter(self, call: Call) -> None:
        try:
            need = self._workload.need(call)
            permit = await self._calls.enter(self._workload.service, self._workload.model, need)
        except Exception as error:  # noqa: BLE001 - whatever it is, the item must end
            self._events.put(CallRefused(call, known(error)))
        else:
            self._events.put(CallPermitted(call, permit, next(self._numbers)))

    async def _make(self, recorded: RecordedCall, seconds_left: float) -> None:
        answers: list[Answer] = []

        async def make() -> Any:
            answers.append(await self._workload.make(recorded.call))
            return answers[0]

        try:
            async with self._concurrency:
                # First mark, then look. The other thread calls `hold` before `has_left`, so at
                # least one of the two sees the other.
                self._left.add(recorded)
                if self._is_held:
                    self._left.discard(recorded)
                    return
                await self._calls.make(
                    self._workload.provider,
                    recorded.permit,
                    make,
                    seconds_left=seconds_left,
                    is_suspect=recorded.call.waste_budget is not None,
                )
            self._events.put(CallAnswered(recorded, answers[0]))
        except asyncio.CancelledError:
            # If only the limiter was still to be told, the answer is here, and paid for.
            if answers:
                self._events.put(CallAnswered(recorded, answers[0]))
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the item must end
            self._events.put(CallFailed(recorded, known(error)))
