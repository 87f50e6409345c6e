"""Packs the inputs of small calls that come at the same time into one job.

A call that comes while none of its kind is under way waits for nobody. Those that come meanwhile
are gathered for some milliseconds. All of it runs on one event loop.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import partial
from typing import Generic, TypeVar

from promptstack.services.llm.packing import EmbeddingInput, bytes_of

MOST_INPUTS = 256
"""Of one job."""
MOST_BYTES = 200_000
SMALL_INPUTS = 32
"""A call of more gains little by company."""
SMALL_BYTES = 16_000

Kind = TypeVar("Kind", bound=Hashable)
Answer = TypeVar("Answer")


class Pack(Generic[Kind, Answer]):
    """Inputs of some calls, which become one job, and those who wait for it."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.inputs: list[EmbeddingInput] = []
        self.bytes = 0
        self.waiting = 0
        """How many calls wait for its answer."""
        self.is_full = asyncio.Event()
        self.work: asyncio.Task[Answer]
        """Made right after it."""

    def takes(self, inputs: Sequence[EmbeddingInput], size: int) -> bool:
        """Whether there is room for these."""
        return len(self.inputs) + len(inputs) <= MOST_INPUTS and self.bytes + size <= MOST_BYTES


class Packing(Generic[Kind, Answer]):
    """Gives calls of one kind, that come at the same time, one answer to share."""

    def __init__(
        self,
        begin: Callable[[Kind, Sequence[EmbeddingInput]], Awaitable[Answer]],
        *,
        gather_seconds: float,
    ) -> None:
        """Take what gets the answer for inputs. It is cancelled when nobody waits any more."""
        self._begin = begin
        self._gather_seconds = gather_seconds
        self._open: dict[Kind, Pack[Kind, Answer]] = {}
        """Packs that are being gathered."""
        self._under_way: Counter[Kind] = Counter()

    async def ask(
        self, kind: Kind, inputs: Sequence[EmbeddingInput], *, alone: bool = False
    ) -> tuple[Answer, int]:
        """Return the answer for these, maybe among others, and the place of the first of them."""
        size = sum(map(bytes_of, inputs))
        is_small = not alone and len(inputs) <= SMALL_INPUTS and size <= SMALL_BYTES
        pack = self._open.get(kind) if is_small else None
        if pack is not None and not pack.takes(inputs, size):
            pack.is_full.set()
            pack = None
        if pack is None:
            pack = Pack[Kind, Answer](kind)
            if is_small and self._under_way[kind] and self._gather_seconds:
                self._open[kind] = pack
                work = self._gather(pack)
            else:
                work = self._work(pack)
            self._under_way[kind] += 1
            pack.work = asyncio.create_task(work)
            pack.work.add_done_callback(partial(self._ended, kind))
        first = len(pack.inputs)
        pack.inputs += inputs
        pack.bytes += size
        return await self._wait(pack), first

    async def _wait(self, pack: Pack[Kind, Answer]) -> Answer:
        pack.waiting += 1
        try:
            return await asyncio.shield(pack.work)
        finally:
            pack.waiting -= 1
            if not pack.waiting:
                self._close(pack)
                pack.work.cancel()

    async def _gather(self, pack: Pack[Kind, Answer]) -> Answer:
        try:
            async with asyncio.timeout(self._gather_seconds):
                await pack.is_full.wait()
        except TimeoutError:
            pass
        return await self._work(pack)

    async def _work(self, pack: Pack[Kind, Answer]) -> Answer:
        self._close(pack)
        return await self._begin(pack.kind, pack.inputs)

    def _ended(self, kind: Kind, work: "asyncio.Task[Answer]") -> None:
        self._under_way -= Counter([kind])
        if not work.cancelled():
            work.exception()  # nobody may be left who hears of it

    def _close(self, pack: Pack[Kind, Answer]) -> None:
        """Let nobody join it any more."""
        if self._open.get(pack.kind) is pack:
            del self._open[pack.kind]
