"""Does to a deployment what the plan says, at its time, and keeps a record."""

import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from chaos.plan import Fault, Planned
from chaos.workers import Victim, Workers

AT_ONCE = 16
"""Faults that may go on at the same time; most wait for the end of another of their kind."""

PATIENCE_SECONDS = 20.0
LOOK_SECONDS = 0.2
TURNS = 8
"""Looks around for a worker, from the one that was chosen."""

Act = Callable[[Planned], UUID | None]
"""Does one fault and returns when it is over; the id of the worker that it hit, if it hit one."""


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
            worker_id = self._acts[planned.fault](planned)
        except Exception as error:  # noqa: BLE001 - the scorecard tells it
            with self._lock:
                self.failed.append(f"{planned.fault}: {type(error).__name__}: {error}")
            return
        with self._lock:
            self.happened.append(Happened(planned.fault, began, datetime.now(UTC), worker_id))


def on_workers(workers: Workers) -> dict[Fault, Act]:
    """What can be done to workers."""
    frozen: set[int] = set()

    def pick(planned: Planned) -> Victim:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            for turn in range(TURNS):
                victim = workers.pick((planned.choice + turn / TURNS) % 1)
                if victim is not None and victim.is_ready and victim.pid not in frozen:
                    return victim
            time.sleep(LOOK_SECONDS)
        raise NothingToHit("all workers are starting, or frozen")

    def kill(planned: Planned) -> UUID | None:
        victim = pick(planned)
        victim.send(signal.SIGKILL)
        return victim.worker_id

    def stop(planned: Planned) -> UUID | None:
        victim = pick(planned)
        frozen.add(victim.pid)
        victim.send(signal.SIGSTOP)
        time.sleep(planned.seconds)
        frozen.discard(victim.pid)
        victim.send(signal.SIGCONT)
        return victim.worker_id

    def term(planned: Planned) -> UUID | None:
        victim = pick(planned)
        victim.send(signal.SIGTERM)
        return victim.worker_id

    return {Fault.KILL: kill, Fault.STOP: stop, Fault.TERM: term}


def alone(lock: AbstractContextManager[object], act: Callable[[float], object]) -> Act:
    """Make an act of what is done to a server, one at a time."""

    def do(planned: Planned) -> None:
        with lock:
            act(planned.seconds)

    return do


def freely(act: Callable[[float], object]) -> Act:
    """Make an act of what may be done at any time."""
    return alone(nullcontext(), act)
