"""The workers under fire, and what was done to them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from uuid import UUID

from promptstack.repositories.errors import TransientLedgerError
from promptstack.repositories.session import Ledger

STOP_SECONDS = 40.0
START_SECONDS = 180.0
LOOK_SECONDS = 0.05
ALIVE_SECONDS = 10.0


@dataclass(frozen=True)
class Victim:
    """A worker process."""

    pid: int
    worker_id: UUID | None
    """None where the ledger doesn't know such workers."""

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def send(self, number: signal.Signals) -> None:
        """Send a signal; one that has ended meanwhile gets none."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Workers(Protocol):
    """Where victims come from."""

    def pick(self, choice: float) -> Victim | None:
        """The worker at this share of those that run now."""


@dataclass(frozen=True)
class Command:
    """How to start some worker processes, and how their log says that one is ready."""

    arguments: Callable[[int], Sequence[str]]
    """Of the number of processes; they are started again when they end."""
    ready: re.Pattern[str]
    """Names the `pid`, and the `worker` where the ledger knows it."""


WORKER = Command(
    lambda processes: (
        *(sys.executable, "-m", "promptstack.worker", "--with-parent"),
        *("--processes", str(processes)),
    ),
    re.compile(r"worker (?P<worker>[0-9a-f-]{36}) \(process (?P<pid>\d+)\) takes"),
)


class LocalWorkers:
    """Workers that this process starts and keeps running, in the order of their groups."""

    def __init__(
        self, groups: Sequence[tuple[Mapping[str, str], int]], folder: Path, command: Command
    ) -> None:
        """Start so many of each environment."""
        self._command = command
        self._count = sum(count for _, count in groups)
        self._logs: list[Path] = []
        self._groups: list[subprocess.Popen[bytes]] = []
        for number, (environment, count) in enumerate(groups):
            log = folder / f"workers-{number}.log"
            self._logs.append(log)
            with log.open("wb") as output:
                self._groups.append(
                    subprocess.Popen(
                        command.arguments(count),
                        env={**os.environ, **environment},
                        # Its end tells them that we are gone.
                        stdin=subprocess.PIPE,
                        stdout=output,
                        stderr=output,
                    )
                )

    def wait_until_ready(self) -> None:
        """Wait until each has said who it is. Raises `TimeoutError`."""
        deadline = time.monotonic() + START_SECONDS
        while len(self._ready(*self._logs)) < self._count:
            if time.monotonic() > deadline:
                raise TimeoutError("The workers did not start; their logs say why.")
            time.sleep(LOOK_SECONDS)

    def pick(self, choice: float) -> Victim | None:
        """The worker at this share of those that are ready; see `Workers.pick`."""
        ready = self._ready(*self._logs)
        return ready[int(choice * len(ready))] if ready else None

    def last(self) -> Victim | None:
        """The one whose lines can be hurt, if it is ready."""
        return next(iter(self._ready(self._logs[-1])), None)

    def stop(self) -> int:
        """End all; how many groups did not end by themselves."""
        for group in self._groups:
            group.terminate()
        return sum(not _has_ended(group) for group in self._groups)

    def _ready(self, *logs: Path) -> list[Victim]:
        found = [
            Victim(int(named["pid"]), UUID(named["worker"]) if "worker" in named else None)
            for log in logs
            for named in (
                match.groupdict()
                for match in self._command.ready.finditer(log.read_text(errors="replace"))
            )
        ]
        return [victim for victim in found if victim.is_alive()]


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    finally:
        if process.stdin is not None:
            process.stdin.close()
    return True


class ExistingWorkers:
    """The workers of an existing deployment that run on this machine."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def pick(self, choice: float) -> Victim | None:
        """The worker at this share of those that the ledger knows as alive here."""
        try:
            with self._ledger.transaction() as unit:
                rows = unit.workers.get_many(hostname=socket.gethostname())
        except TransientLedgerError:
            return None
        now = datetime.now(UTC)
        alive = [
            Victim(row.pid, row.id)
            for row in rows
            if (now - row.heartbeat_at).total_seconds() < ALIVE_SECONDS
        ]
        return alive[int(choice * len(alive))] if alive else None
