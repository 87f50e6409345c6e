"""The calls of a shard on the event loop; the shard's thread hears of them as events."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any

from promptstack.config.errors import PromptStackError
from promptstack.services.execution.provider_calls import bug
from promptstack.services.limiter.limited_calls import LimitedCalls
from promptstack.services.limiter.limiter import Permit
from promptstack.services.llm.base import LLMService
from promptstack.services.runs.shards.workload import Answer, Asking, Call

LOOK_SECONDS = 0.1
LINGER_A_CALL, LONGEST_LINGER = 0.00015, 0.03
"""How long more events are waited for once there is one, in seconds for each call that there is:
what comes together is stored together, and a transaction costs as much for twenty calls as for
one. Of few calls, few come together, and waiting would only leave their places empty."""


@dataclass(frozen=True, eq=False)
class Permitted:
    """A call may leave."""

    call: Call
    permit: Permit | None
    number: int
    """Of the call within the shard's attempt: its row is one, however often it is written."""


@dataclass(frozen=True, eq=False)
class Refused:
    """A call may not leave now; it was not made."""

    call: Call
    error: PromptStackError


@dataclass(frozen=True, eq=False)
class Sent:
    """A call whose attempt is on record."""

    call: Call
    permit: Permit | None
    attempt_id: int
    most_usd: Any
    """What was reserved for it."""


@dataclass(frozen=True, eq=False)
class Answered:
    """A call has its answer."""

    sent: Sent
    answer: Answer


@dataclass(frozen=True, eq=False)
class Failed:
    """A call has none."""

    sent: Sent
    error: PromptStackError


Event = Permitted | Refused | Answered | Failed


class CallSession:
    """Runs calls until it is ended or cancelled."""

    def __init__(
        self,
        asking: Asking,
        service: LLMService,
        calls: LimitedCalls,
        gate: Callable[[], asyncio.Semaphore],
    ) -> None:
        """Take `gate`, which holds calls back while as many as may be are under way."""
        self._gate = gate
        self._asking = asking
        self._service = service
        self._calls = calls
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._left: set[int] = set()
        self._is_held = False
        self._numbers = count()
        self._begun = threading.Event()
        self._ended = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None

    async def run(self) -> None:
        """Be there for calls. Cancelled, it closes them all."""
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._begun.set()
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
                # Also where it is cancelled just now: somebody waits for this.
                self._ended.set()

    def wait_until_begun(self, running: Future[None]) -> None:
        """Return when calls can be made. Raises `CancelledError` where that won't be."""
        while not self._begun.wait(LOOK_SECONDS):
            if running.done():
                raise CancelledError

    def ask_leave(self, calls: list[Call]) -> None:
        """Ask the limiter for calls: each comes to `Permitted` or `Refused`."""
        self._start([self._enter(call) for call in calls])

    def send(self, sent: list[Sent], seconds_left: float) -> None:
        """Make calls: each comes to `Answered` or `Failed`."""
        self._start([self._make(one, seconds_left) for one in sent])

    def give_back(self, permits: list[Permit | None]) -> None:
        """Settle permits of calls that are not made after all."""
        for permit in permits:
            # Also where the session is over: its lease would be renewed for ever.
            if permit is not None and self._loop is not None:
                asyncio.run_coroutine_threadsafe(self._calls.give_back(permit), self._loop)

    def hold(self) -> None:
        """Let no call leave any more, also of those that wait, recorded, for a place."""
        self._is_held = True

    def has_left(self, sent: Sent) -> bool:
        """Whether a call was really made; some wait, recorded, for a place."""
        return sent.attempt_id in self._left

    def end(self) -> None:
        """Close what is left, and wait until it is closed."""
        if self._loop is not None and self._over is not None and self._begun.is_set():
            self._loop.call_soon_threadsafe(self._over.set)
            self._ended.wait()

    def events(self, seconds: float, calls: int) -> list[Event]:
        """What has happened to the `calls`, once something has; nothing after `seconds`."""
        found: list[Event] = []
        try:
            found.append(self._events.get(timeout=max(0.0, seconds)))
        except Empty:
            return found
        time.sleep(min(LONGEST_LINGER, calls * LINGER_A_CALL))
        return found + self.events_now()

    def events_now(self) -> list[Event]:
        """What has happened by now."""
        found: list[Event] = []
        while True:
            try:
                found.append(self._events.get_nowait())
            except Empty:
                return found

    def _start(self, coroutines: list[Coroutine[Any, Any, None]]) -> None:
        if coroutines and self._loop is not None:
            self._loop.call_soon_threadsafe(self._start_here, coroutines)

    def _start_here(self, coroutines: list[Coroutine[Any, Any, None]]) -> None:
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
            need = self._asking.need(call, self._service)
            permit = await self._calls.enter(self._service, self._asking.model, need)
        except PromptStackError as error:
            self._events.put(Refused(call, error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the item must end
            self._events.put(Refused(call, bug(error)))
        else:
            self._events.put(Permitted(call, permit, next(self._numbers)))

    async def _make(self, sent: Sent, seconds_left: float) -> None:
        answers: list[Answer] = []

        async def ask() -> Any:
            answers.append(await self._asking.ask(sent.call, self._service))
            return answers[0]

        try:
            async with self._gate():
                # In this order, as `hold` and then `has_left` come from another thread: one of the
                # two sees the other.
                self._left.add(sent.attempt_id)
                if self._is_held:
                    self._left.discard(sent.attempt_id)
                    return  # the shard knows it as one that has not left
                await self._calls.make(
                    self._asking.provider,
                    sent.permit,
                    ask,
                    seconds_left=seconds_left,
                    is_suspect=sent.call.parting is not None,
                )
            self._events.put(Answered(sent, answers[0]))
        except asyncio.CancelledError:
            # Where only the limiter was still to be told, the answer is there, and paid for.
            if answers:
                self._events.put(Answered(sent, answers[0]))
            raise
        except PromptStackError as error:
            self._events.put(Failed(sent, error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the item must end
            self._events.put(Failed(sent, bug(error)))
