"""What processes use: processor time between two moments, and the peak of their memory."""

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

import psutil

SAMPLE_SECONDS = 0.1


class Usage:
    """Watches processes, each with its children, while the context is open."""

    def __init__(self, processes: Mapping[str, psutil.Process]) -> None:
        self._processes = processes
        self.cpu: dict[str, float] = {}
        """Seconds of processor time."""
        self.peak: dict[str, int] = dict.fromkeys(processes, 0)
        """Most resident memory, in bytes, of the process itself."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._before = {name: _cpu(process) for name, process in self._processes.items()}
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        for name, process in self._processes.items():
            self.cpu[name] = _cpu(process) - self._before[name]

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            for name, process in self._processes.items():
                self.peak[name] = max(self.peak[name], process.memory_info().rss)


def _cpu(process: psutil.Process) -> float:
    """Of it and of its children, also of those that have ended; of ourselves, without them."""
    times = process.cpu_times()
    total = float(times.user + times.system)
    if process.pid == os.getpid():
        return total
    total += times.children_user + times.children_system
    for child in process.children():
        with suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system
    return total
