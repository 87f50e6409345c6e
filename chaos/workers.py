"""The workers under fire, and what was done to them."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from uuid import UUID

from repositories.errors import TransientLedgerError
from repositories.session import Ledger

ROOT = Path(__file__).parents[1]
STOP_SECONDS = 40.0
START_SECONDS = 60.0
LOOK_SECONDS = 0.05
ALIVE_SECONDS = 10.0


@dataclass(frozen=True)
class Victim:
    """A worker process."""

    pid: int
    worker_id: UUID | None
    """None where the ledger doesn't know such workers."""
    is_ready: bool = True

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
    """How to start a worker, and how it says that it is ready."""

    arguments: Sequence[str]
    ready: re.Pattern[str]
    """In its log; its first group, if there is one, is the worker's id."""


OURS = Command(
    (sys.executable, "-m", "worker", "--with-parent"),
    re.compile(r"worker ([0-9a-f-]{36}) takes"),
)


class OwnWorker:
    """A worker of ours that is started again when it ends."""

    def __init__(
        self, name: str, command: Command, environment: Mapping[str, str], folder: Path
    ) -> None:
        self._name = name
        self._command = command
        self._environment = {**os.environ, **environment}
        self._folder = folder
        self._starts = 0
        self._start()

    @property
    def victim(self) -> Victim:
        """The process that runs now."""
        found = self._command.ready.search(self._log.read_text(errors="replace"))
        worker_id = UUID(found[1]) if found and found.groups() else None
        return Victim(self.process.pid, worker_id, found is not None)

    def keep(self) -> None:
        """Start it again if it has ended."""
        if self.process.poll() is not None:
            self._close()
            self._start()

    def end(self) -> None:
        """Tell it to stop."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()

    def wait(self, seconds: float) -> bool:
        """Wait for its end; False where it had to be ended by force."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False
        finally:
            self._close()
        return True

    def _start(self) -> None:
        self._starts += 1
        self._log = self._folder / f"{self._name}-{self._starts}.log"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command.arguments,
                cwd=ROOT,
                env=self._environment,
                # Its end tells the worker that we are gone.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )

    def _close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()


class OwnWorkers:
    """Workers of ours, kept running."""

    def __init__(
        self,
        environments: Sequence[Mapping[str, str]],
        folder: Path,
        command: Command = OURS,
    ) -> None:
        """Start one with each environment."""
        self._workers = [
            OwnWorker(f"worker-{number}", command, environment, folder)
            for number, environment in enumerate(environments)
        ]
        self._stopped = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._keeper.start()

    def wait_until_ready(self) -> None:
        """Wait until each has said who it is. Raises `TimeoutError`."""
        deadline = time.monotonic() + START_SECONDS
        while not all(worker.victim.is_ready for worker in self._workers):
            if time.monotonic() > deadline:
                raise TimeoutError("The workers did not start; their logs say why.")
            time.sleep(LOOK_SECONDS)

    def pick(self, choice: float) -> Victim | None:
        """The worker at this share of all; see `Workers.pick`."""
        return self._workers[int(choice * len(self._workers))].victim

    def last(self) -> Victim:
        """The one whose lines can be hurt."""
        return self._workers[-1].victim

    def stop(self) -> int:
        """End all; how many did not end by themselves."""
        self._stopped.set()
        self._keeper.join()
        for worker in self._workers:
            worker.end()
        return sum(not worker.wait(STOP_SECONDS) for worker in self._workers)

    def _keep(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            for worker in self._workers:
                worker.keep()


class FoundWorkers:
    """The workers of somebody's deployment that run on this machine."""

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
