"""Does to a deployment what the plan says, at its time, and keeps a record."""

import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from promptstack.chaos.plan import Fault, Planned
from promptstack.chaos.workers import Victim, Workers

AT_ONCE = 16
"""Faults that may go on at the same time; most wait for the end of another of their kind."""

PATIENCE_SECONDS = 20.0
LOOK_SECONDS = 0.2
TURNS = 8
"""Looks around for a worker, from the one that was chosen."""


@dataclass(frozen=True)
class Hit:
    """A worker that was hit, and when."""

    worker_id: UUID | None
    at: datetime


Act = Callable[[Planned], Hit | None]
"""Does one fault and returns when it is over; whom it hit, if it hit one worker."""


@dataclass(frozen=True)
class Happened:
    """A fault that was done."""

    fault: Fault
    began: datetime
    ended: datetime
    worker_id: UUID | None


class NothingToHit(Exception):
    """No worker is there to be hurt."""


class Driver:
    """Works through a plan."""

    def __init__(self, acts: Mapping[Fault, Act]) -> None:
        self._acts = acts
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.happened: list[Happened] = []
        self.failed: list[str] = []
        """Faults that could not be done, each with the reason."""

    def run(self, plan: Sequence[Planned]) -> None:
        """Do all that is planned; returns when the last fault is over."""
        began = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fault") as threads:
            for planned in plan:
                if self._stopped.wait(max(0.0, planned.at - (time.monotonic() - began))):
                    return
                threads.submit(self._do, planned)

    def stop(self) -> None:
        """Begin no further fault."""
        self._stopped.set()

    def counts(self) -> dict[Fault, int]:
        """How often each was done so far."""
        with self._lock:
            done = [one.fault for one in self.happened]
        return {fault: done.count(fault) for fault in self._acts}

    def _do(self, planned: Planned) -> None:
        began = datetime.now(UTC)
        try:
            hit = self._acts[planned.fault](planned)
        except Exception as error:  # noqa: BLE001 - the scorecard tells it
            with self._lock:
                self.failed.append(f"{planned.fault}: {type(error).__name__}: {error}")
            return
        ended = datetime.now(UTC)
        done = (
            Happened(planned.fault, began, ended, None)
            if hit is None
            else Happened(planned.fault, hit.at, ended, hit.worker_id)
        )
        with self._lock:
            self.happened.append(done)


def on_workers(workers: Workers) -> dict[Fault, Act]:
    """What can be done to workers."""
    frozen: set[int] = set()

    def pick(planned: Planned) -> Victim:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            for turn in range(TURNS):
                victim = workers.pick((planned.choice + turn / TURNS) % 1)
                if victim is not None and victim.pid not in frozen:
                    return victim
            time.sleep(LOOK_SECONDS)
        raise NothingToHit("all workers are starting, or frozen")

    def send(planned: Planned, number: signal.Signals) -> tuple[Victim, Hit]:
        victim = pick(planned)
        hit = Hit(victim.worker_id, datetime.now(UTC))
        victim.send(number)
        return victim, hit

    def kill(planned: Planned) -> Hit:
        return send(planned, signal.SIGKILL)[1]

    def term(planned: Planned) -> Hit:
        return send(planned, signal.SIGTERM)[1]

    def stop(planned: Planned) -> Hit:
        victim, hit = send(planned, signal.SIGSTOP)
        frozen.add(victim.pid)
        time.sleep(planned.seconds)
        frozen.discard(victim.pid)
        victim.send(signal.SIGCONT)
        return hit

    return {Fault.KILL: kill, Fault.STOP: stop, Fault.TERM: term}


def alone(lock: AbstractContextManager[object], act: Callable[[float], object]) -> Act:
    """Make an act of what is done to a server, one at a time."""

    def do(planned: Planned) -> None:
        with lock:
            act(planned.seconds)

    return do
