"""Starts processes, starts those again that end, and ends all of them together."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

LOOK_SECONDS = 0.05
SHORT_LIFE_SECONDS = 2.0
"""What ends so soon is started again only after a rest."""


class Process(Protocol):
    """What `subprocess.Popen` can do and the supervisor needs."""

    def poll(self) -> int | None:
        """Return the exit code; None while the process runs."""

    def terminate(self) -> None:
        """Ask it to end. Does nothing to one that has ended."""

    def kill(self) -> None:
        """End it by force."""


@dataclass
class Child:
    """A process and how to start it again."""

    name: str
    start: Callable[[], Process]
    process: Process | None = None
    """None once it has ended."""
    started_at: float = 0.0
    rests_until: float = 0.0


OnEnd = Callable[[str, Any, int], None]
"""Hears of a process that ended: its name, what `start` returned, and the exit code."""


class Supervisor:
    """Keeps processes running until it is told to end them."""

    def __init__(
        self, on_end: OnEnd = lambda name, process, code: None, *, rest_seconds: float = 0.0
    ) -> None:
        self._on_end = on_end
        self._rest_seconds = rest_seconds
        self._children: list[Child] = []
        self._is_ending = False

    def add(self, name: str, start: Callable[[], Process]) -> None:
        """Start a process now, and again whenever it ends."""
        child = Child(name, start)
        self._open(child)
        self._children.append(child)

    def look(self) -> None:
        """Note which processes have ended, and start these again."""
        for child in self._children:
            process, now = child.process, time.monotonic()
            if process is not None and (code := process.poll()) is not None:
                if now - child.started_at < SHORT_LIFE_SECONDS:
                    child.rests_until = now + self._rest_seconds
                child.process = None
                self._on_end(child.name, process, code)
            if child.process is None and not self._is_ending and now >= child.rests_until:
                self._open(child)

    def terminate(self) -> None:
        """Ask all processes to end; none is started any more."""
        self._is_ending = True
        for process in self._running():
            process.terminate()

    def wait(self, seconds: float) -> None:
        """Wait until all processes have ended. Raises `TimeoutError` after so many seconds."""
        deadline = time.monotonic() + seconds
        while self.is_running():
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(LOOK_SECONDS)

    def kill(self) -> None:
        """End all processes by force."""
        for process in self._running():
            process.kill()

    def is_running(self) -> bool:
        """Whether a process has not ended."""
        self.look()
        return bool(self._running())

    def _running(self) -> Sequence[Process]:
        return [child.process for child in self._children if child.process is not None]

    def _open(self, child: Child) -> None:
        child.process = child.start()
        child.started_at = time.monotonic()
