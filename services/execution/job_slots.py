"""How many jobs a worker has in hand: as many calls as it may make at once, and a few jobs more.

A job has a slot while it waits for the limiter and while its call is under way. While its answer is
stored, another job has the slot. If jobs end quickly, some are claimed ahead, so that a slot does
not stay empty for as long as a claim takes; of jobs that take long, none, as another worker may be
free.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CLAIM_SECONDS = 0.05
"""What a claim takes under load, from the message on."""
RATE_SECONDS = 1.0
"""Over how long the rate is taken at which jobs end."""


class JobSlots:
    """The slots of one worker. All but `most_jobs` is called on the event loop."""

    def __init__(self, calls: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take how many `calls` of jobs may be under way at once."""
        self._calls = calls
        self._free = asyncio.Semaphore(calls)
        self._clock = clock
        self._storing = 0
        self._ends = 0
        self._counted_since = clock()
        self._ends_a_second = 0.0

    @property
    def most_jobs(self) -> int:
        """How many jobs the worker may have in hand now. Any thread may ask."""
        ahead = int(self.ends_a_second * CLAIM_SECONDS)
        return self._calls + self._storing + min(ahead, self._calls)

    @property
    def ends_a_second(self) -> float:
        """At what rate jobs end just now. Any thread may ask."""
        # Who has had no end for long counts none: nothing else would bring an old rate down.
        is_old = self._clock() - self._counted_since > 2 * RATE_SECONDS
        return 0.0 if is_old else self._ends_a_second

    async def acquire(self) -> None:
        """Wait for a slot."""
        await self._free.acquire()

    def release(self) -> None:
        """Leave the slot to another job."""
        self._free.release()

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Store an answer in this context: its job needs no slot any more."""
        self._note_end()
        self._storing += 1
        try:
            yield
        finally:
            self._storing -= 1

    def _note_end(self) -> None:
        self._ends += 1
        passed = self._clock() - self._counted_since
        if passed >= RATE_SECONDS:
            self._ends_a_second = self._ends / passed
            self._ends, self._counted_since = 0, self._clock()
