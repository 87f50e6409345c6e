"""Steps of many jobs in one transaction: one that waits writes for all that wait with it.

A transaction costs far more than what it writes. Whoever comes first leads: while its transaction
is under way others gather, and the next of them leads those. Who comes alone does not wait, and
makes the step alone.
"""

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from promptstack.config.errors import PromptStackError
from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.jobs.records import (
    BeginStep,
    Claim,
    ClaimStep,
    JobSnapshot,
    SucceedStep,
)
from promptstack.repositories.session import Ledger, UnitOfWork

TOGETHER = 200
"""Steps in one transaction at most."""
GATHER_SECONDS = 0.01
"""From one transaction to the next: of a step that comes alone, nothing is noticed."""

Step = ClaimStep | BeginStep | SucceedStep
T = TypeVar("T")


class NotBatched(PromptStackError):
    """The step could not be made together with others; it is to be made alone."""

    code = "NOT_TOGETHER"


@dataclass(eq=False)
class _Waiting:
    """One who waits for his step."""

    step: Step
    check: Callable[[], None]
    """Raises where the step shall not be made any more."""
    told: threading.Event = field(default_factory=threading.Event)
    is_leader: bool = False
    outcome: Any = None
    error: BaseException | None = None


class GroupCommit:
    """Makes steps of jobs together."""

    def __init__(self, ledger: Ledger, worker_id: UUID) -> None:
        self._ledger = ledger
        self._worker_id = worker_id
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._is_led = False
        self._next_at = 0.0

    def claim(self, asked: ClaimStep) -> Claim | None:
        """Claim a job. Raises `NotBatched`."""
        claim: Claim | None = self._make(asked)
        return claim

    def begin(self, beginning: BeginStep, check: Callable[[], None]) -> int:
        """Record a call that is about to leave, unless `check` raises; the attempt's id.

        Raises `NotBatched`, `ClaimLost`.
        """
        attempt_id: int | None = self._make(beginning, check)
        if attempt_id is None:
            raise ClaimLost(f"Job {beginning.claim.job_id} is held no longer; no call was made.")
        return attempt_id

    def succeed(self, answered: SucceedStep) -> JobSnapshot:
        """Store an answer as the result; how the job stands then. Raises `NotBatched`."""
        standing: JobSnapshot | None = self._make(answered)
        if standing is None:
            raise NotBatched("The job is held no longer; its answer is kept apart.")
        return standing

    def _make(self, step: Step, check: Callable[[], None] = lambda: None) -> Any:
        mine = _Waiting(step, check)
        with self._lock:
            self._waiting.append(mine)
            mine.is_leader = not self._is_led
            self._is_led = True
        if not mine.is_leader:
            mine.told.wait()
        if mine.is_leader:
            self._lead()
        if mine.error is not None:
            raise mine.error
        return mine.outcome

    def _lead(self) -> None:
        """Make the steps of all who wait now, and let the next one lead."""
        time.sleep(max(0.0, self._next_at - time.monotonic()))
        with self._lock:
            # In their order, so that the leader is always among those it leads.
            led, self._waiting = self._waiting[:TOGETHER], self._waiting[TOGETHER:]
        try:
            self._write_all(led)
        finally:
            self._next_at = time.monotonic() + GATHER_SECONDS
            with self._lock:
                heir = self._waiting[0] if self._waiting else None
                self._is_led = heir is not None
            if heir is not None:
                heir.is_leader = True
                heir.told.set()
            for waiting in led:
                waiting.told.set()

    def _write_all(self, led: Sequence[_Waiting]) -> None:
        made: list[_Waiting] = []
        for waiting in led:
            try:
                waiting.check()
            except BaseException as error:  # noqa: BLE001 - it is raised where it belongs
                waiting.error = error
            else:
                made.append(waiting)
        if len(made) == 1:
            made[0].error = NotBatched("Nobody else is there.")
            return
        try:
            with self._ledger.transaction() as unit:
                unit.steps.limit_waiting()
                for waiting, outcome in self._write(unit, made):
                    waiting.outcome = outcome
        except BaseException as error:  # noqa: BLE001 - each one finds out alone what was wrong
            for waiting in made:
                waiting.error = NotBatched(f"Not together: {type(error).__name__}.")

    def _write(self, unit: UnitOfWork, made: Sequence[_Waiting]) -> list[tuple[_Waiting, Any]]:
        outcomes: list[tuple[_Waiting, Any]] = []
        asked = _of(made, ClaimStep, lambda step: step.job_id)
        if asked:
            claims = unit.steps.claim_batch([step for step, _ in asked.values()], self._worker_id)
            outcomes += [(who, claims.get(key)) for key, (_, who) in asked.items()]
        answered = _of(made, SucceedStep, lambda step: step.claim.job_id)
        if answered:
            standings = unit.steps.succeed_batch([step for step, _ in answered.values()])
            outcomes += [(who, standings.get(key)) for key, (_, who) in answered.items()]
        begun = _of(made, BeginStep, lambda step: (step.claim.job_id, step.values["call"]))
        if begun:
            attempts = unit.steps.begin_batch([step for step, _ in begun.values()])
            outcomes += [(who, attempts.get(key)) for key, (_, who) in begun.items()]
        return outcomes


def _of(
    made: Sequence[_Waiting], kind: type[T], key: Callable[[T], Hashable]
) -> dict[Any, tuple[T, _Waiting]]:
    """The steps of one kind by their key; of two for the same job, the first counts."""
    found: dict[Any, tuple[T, _Waiting]] = {}
    for waiting in made:
        if isinstance(waiting.step, kind):
            found.setdefault(key(waiting.step), (waiting.step, waiting))
    return found
