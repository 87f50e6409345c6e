"""What a process costs: its processor time between two moments, and its peak memory."""

import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

SAMPLE_SECONDS = 0.05


class Meter:
    """Meters a process while the context is open; its children count, but for our own."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.cpu_seconds = 0.0
        self.peak_rss = 0
        """Resident memory of the process, or of a child that takes more, in bytes."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._family = [self._process, *self._process.children()]
        self._before = _cpu(self._process)
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
        self.cpu_seconds = _cpu(self._process) - self._before

    def _sample(self) -> None:
        # Only memory has to be looked at again and again: each look costs processor time too.
        while not self._stop.wait(SAMPLE_SECONDS):
            with suppress(psutil.NoSuchProcess):
                resident = (process.memory_info().rss for process in self._family)
                self.peak_rss = max(self.peak_rss, *resident)


def high_water(pid: int) -> int:
    """The most resident memory that a process has had since it began, in bytes (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    [kilobytes] = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) * 1024


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
