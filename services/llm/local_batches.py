"""Texts of many calls that a model on this machine embeds together."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from promptstack.services.llm.errors import Overloaded
from promptstack.services.llm.packing import EmbeddingLimits

MOST_WAITING = 2_048
"""Calls that may wait for the model: more than the jobs of any worker."""


class Embedded(NamedTuple):
    """One text's vector and its number of tokens."""

    vector: npt.NDArray[np.float32]
    tokens: int


Embed = Callable[[Sequence[str]], Sequence[Embedded | Exception]]
"""Embeds texts; what is wrong with a text stands in its place."""


@dataclass(eq=False)
class _Asked:
    """A call that waits for the model."""

    texts: Sequence[str]
    answer: Future[list[Embedded]] = field(default_factory=Future)

    @property
    def size(self) -> int:
        return sum(map(len, self.texts))


class Batches:
    """Gives the model all texts that wait, up to its limits, each time that it is free.

    The first call goes at once; those that come while the model works go together next. The model
    works in one thread, so it keeps nobody from anything else: more threads would not be quicker,
    as they would wait for each other.
    """

    def __init__(self, embed: Embed, limits: EmbeddingLimits) -> None:
        self._embed = embed
        self._limits = limits
        self._waiting: deque[_Asked] = deque()
        self._thread = ThreadPoolExecutor(1, "local-model")

    async def embed(self, texts: Sequence[str]) -> list[Embedded]:
        """Embed texts, in their order. Raises what is wrong with one of them, and `Overloaded`."""
        if len(self._waiting) >= MOST_WAITING:
            raise Overloaded(
                f"{MOST_WAITING:,} calls wait for the model on this machine already.",
                retry_after=1.0,
            )
        asked = _Asked(texts)
        self._waiting.append(asked)
        # Once for each call, as any may be the last of a batch; it may find nothing left to do.
        self._thread.submit(self._work)
        return await asyncio.wrap_future(asked.answer)

    def close(self) -> None:
        """Let the thread end with what it has to do."""
        self._thread.shutdown(wait=False)

    def _work(self) -> None:
        taken = self._take()
        if not taken:
            return
        texts = [text for asked in taken for text in asked.texts]
        try:
            embedded = list(self._embed(texts))
        except Exception as error:  # noqa: BLE001 - those who wait must know
            embedded = [error] * len(texts)
        for asked in taken:
            own, embedded = embedded[: len(asked.texts)], embedded[len(asked.texts) :]
            wrong = next((one for one in own if isinstance(one, Exception)), None)
            if wrong is not None:
                asked.answer.set_exception(wrong)
            else:
                asked.answer.set_result([one for one in own if isinstance(one, Embedded)])

    def _take(self) -> list[_Asked]:
        """The next calls, without those that were cancelled; at least one, if there is one."""
        taken: list[_Asked] = []
        texts = size = 0
        while self._waiting:
            asked = self._waiting[0]
            is_over = (
                texts + len(asked.texts) > self._limits.items
                or size + asked.size > self._limits.bytes
            )
            if taken and is_over and not asked.answer.cancelled():
                break
            self._waiting.popleft()
            if asked.answer.set_running_or_notify_cancel():
                taken.append(asked)
                texts, size = texts + len(asked.texts), size + asked.size
        return taken
