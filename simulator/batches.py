"""Batches, whatever their wire: their lines are worked through in a settable time."""

import asyncio
import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from promptstack.simulator.faults import NO_FAULT, Fault, FaultScript
from promptstack.simulator.ledger import Ledger
from promptstack.simulator.wire import Answer, Endpoint, ProviderRequest, Refusal, work

MOST_BATCHES = 1_000
MOST_BYTES = 512 * 1024 * 1024
"""Of the requests of all batches together."""
NEVER_ANSWERED = frozenset({"reset", "hang"})
AT_ONCE = 64
"""Lines that are worked through before anything else has a turn."""


class LineState(IntEnum):
    """How far a line is."""

    WAITING = 0
    SUCCEEDED = 1
    FAILED = 2
    EXPIRED = 3
    CANCELLED = 4


@dataclass(frozen=True)
class Line:
    """A request of a batch."""

    number: int
    """From 0."""
    custom_id: str
    path: str
    """Of the endpoint, for the faults that name one."""
    body: Mapping[str, Any]


@dataclass
class Batch:
    """A batch: its requests as JSON lines, and how far each is. Answers are made when read."""

    id: str
    content: bytes
    read: Callable[[int, bytes], Line]
    endpoint: Endpoint
    made_of: Mapping[str, Any]
    """What its wire wants to say of it again."""
    created_at: float
    status: str = "validating"
    errors: list[Mapping[str, Any]] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    """When it came to each status."""
    states: bytearray = field(default_factory=bytearray)
    faults: dict[int, Fault] = field(default_factory=dict)
    cancelling: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None
    files: Mapping[str, str | None] = field(default_factory=dict)
    """The ids of what it made, where its wire has files."""

    def enter(self, status: str, now: float) -> None:
        """Come to a status."""
        self.status = status
        self.times[status] = now

    def lines(self) -> Iterator[Line]:
        """Read its requests. A line that isn't one raises `ValueError` or `KeyError`."""
        filled = (raw for raw in io.BytesIO(self.content) if raw.strip())
        return (self.read(number, raw) for number, raw in enumerate(filled))

    def counts(self) -> Mapping[LineState, int]:
        """How many lines are in each state."""
        return {state: self.states.count(state) for state in LineState}

    def answer(self, line: Line) -> Answer:
        """Answer one line: the same each time. Raises `Refusal`."""
        fault = self.faults.get(line.number, NO_FAULT)
        if fault.kind == "stray":
            raise Refusal(429, fault.message, "rate_limit_exceeded")
        answer = work(self.endpoint, ProviderRequest(line.body, {}, fault))
        # The answer is made again for each reader, who is to find the same.
        for name in answer.body.keys() & {"created", "created_at"}:
            answer = Answer({**answer.body, name: int(self.created_at)}, answer.billed)
        return answer


class Batches:
    """The batches of one simulator."""

    def __init__(
        self,
        ledger: Ledger,
        faults: FaultScript,
        seconds: Callable[[], float],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._faults = faults
        self._seconds = seconds
        self.clock = clock
        self._batches: dict[str, Batch] = {}

    def start(
        self,
        batch: Batch,
        check: Callable[[Batch], None] = lambda batch: None,
        end: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        """Keep a batch and work on it. `check` may fail it, `end` makes its files."""
        kept = sum(len(one.content) for one in self._batches.values()) + len(batch.content)
        if len(self._batches) >= MOST_BATCHES or kept > MOST_BYTES:
            message = f"The simulator keeps {MOST_BATCHES} batches of {MOST_BYTES} bytes: reset it."
            raise Refusal(429, message, "batch_limit_exceeded")
        self._batches[batch.id] = batch
        batch.task = asyncio.get_running_loop().create_task(self._work_on(batch, check, end))

    def get(self, name: str) -> Batch:
        """Find a batch by its id. Raises `Refusal`."""
        if name not in self._batches:
            raise Refusal(404, f"No batch found with id '{name}'.", "not_found")
        return self._batches[name]

    def newest_first(self, prefix: str) -> list[Batch]:
        """The batches of one wire."""
        return [one for one in reversed(self._batches.values()) if one.id.startswith(prefix)]

    def cancel(self, batch: Batch) -> None:
        """Work on no more lines of a batch that has not ended."""
        if batch.status in {"validating", "in_progress"}:
            batch.enter("cancelling", self.clock())
            batch.cancelling.set()

    def forget(self, batch: Batch) -> None:
        """Forget a batch that has ended."""
        del self._batches[batch.id]

    def reset(self) -> None:
        """Forget all batches, and end the work on them."""
        for batch in self._batches.values():
            if batch.task is not None:
                batch.task.cancel()
        self._batches.clear()

    async def _work_on(
        self, batch: Batch, check: Callable[[Batch], None], end: Callable[[Batch], None]
    ) -> None:
        # Whoever made it sees it before it is checked.
        await asyncio.sleep(0)
        check(batch)
        if batch.errors:
            batch.enter("failed", self.clock())
            return
        # All faults at once, so that they hit the same lines however often somebody looks.
        count = 0
        for line in batch.lines():
            fault = self._faults.take(line.path, str(line.body.get("model") or ""))
            if fault is not NO_FAULT:
                batch.faults[line.number] = fault
            count = line.number + 1
        batch.states = bytearray(count)
        if not batch.cancelling.is_set():
            batch.enter("in_progress", self.clock())
        await self._answer_all(batch)
        is_cancelled = batch.cancelling.is_set()
        left = LineState.CANCELLED if is_cancelled else LineState.EXPIRED
        batch.states = batch.states.replace(bytes([LineState.WAITING]), bytes([left]))
        if not is_cancelled:
            batch.enter("finalizing", self.clock())
        end(batch)
        over = "expired" if batch.states.count(LineState.EXPIRED) else "completed"
        batch.enter("cancelled" if is_cancelled else over, self.clock())

    async def _answer_all(self, batch: Batch) -> None:
        loop = asyncio.get_running_loop()
        slow = [fault.seconds for fault in batch.faults.values() if fault.kind == "billed_timeout"]
        began, seconds = loop.time(), self._seconds() + max(slow, default=0.0)
        for line in batch.lines():
            if seconds:
                share = (line.number + 1) / len(batch.states)
                await _wait(batch.cancelling, began + seconds * share - loop.time())
            elif line.number % AT_ONCE == 0:
                await asyncio.sleep(0)
            if batch.cancelling.is_set():
                return
            if batch.faults.get(line.number, NO_FAULT).kind in NEVER_ANSWERED:
                continue
            try:
                answer = batch.answer(line)
            except Refusal:
                batch.states[line.number] = LineState.FAILED
            else:
                self._ledger.bill(answer.billed)
                batch.states[line.number] = LineState.SUCCEEDED


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, but no longer than this."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), max(seconds, 0.0))
