"""What processes cost: CPU time and memory, sampled while they work."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Cost:
    """What some processes used while they were metered."""

    cpu_seconds: float
    peak_rss: int
    """Bytes, of all of them together."""


class Meter:
    """Samples processes and their children in a thread while the context is open."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._roots = [psutil.Process(pid) for pid in pids]
        self._before: dict[psutil.Process, float] = {}
        # Of a child that has ended, its last sample stands.
        self._after: dict[psutil.Process, float] = {}
        self._peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._sample()
        self._before = dict(self._after)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def cost(self) -> Cost:
        """What was used from the beginning to the last sample."""
        spent = sum(cpu - self._before.get(it, 0.0) for it, cpu in self._after.items())
        return Cost(spent, self._peak)

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        rss = 0
        for root in self._roots:
            with suppress(psutil.NoSuchProcess):
                for process in (root, *root.children(recursive=True)):
                    with suppress(psutil.NoSuchProcess):
                        self._after[process] = sum(process.cpu_times()[:2])
                        rss += process.memory_info().rss
        self._peak = max(self._peak, rss)
