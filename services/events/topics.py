"""What can be watched: jobs and runs, and what there is to see of them.

All of this asks Redis and the ledger, and is called in a thread.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol
from uuid import UUID

from pydantic import TypeAdapter

from promptstack.config.names import PROGRESS_KEY, RUN_KEY
from promptstack.repositories.models import JobKind, JobState
from promptstack.repositories.run_models import RunState
from promptstack.repositories.session import Ledger
from promptstack.services.events.places import Look
from promptstack.services.jobs.progress import Progress, ProgressService
from promptstack.services.jobs.views import JobView, Wait
from promptstack.services.runs.progress import RunProgress, RunSnapshot
from promptstack.services.runs.rate import Rate
from promptstack.services.runs.views import RunView
from promptstack.services.validation.json_text import dump_json

END = "end"
WAITS_SECONDS = 2.0
"""How old it may be what a job waits for."""
NEVER = (float("-inf"), None)
FINAL_STATES = frozenset(str(state) for state in JobState if state.is_final)
FINAL_RUN_STATES = frozenset(str(state) for state in RunState if state.is_final)
_RUN = TypeAdapter(RunView)
WaitsOf = Callable[[Sequence[UUID]], Mapping[UUID, Wait]]


class Topic(Protocol):
    """A kind of thing that can be watched."""

    def channel(self, one: UUID) -> str:
        """The channel on which Redis tells that it has changed: its key."""

    def has_text(self, one: UUID) -> bool:
        """Whether it shows a text as it is produced."""

    def look(self, ids: Sequence[UUID], only_end: Collection[UUID] = ()) -> Mapping[UUID, Look]:
        """Where these stand. One that doesn't exist any more is left out.

        Of some `only_end` matters: less is asked for them.
        """

    def says_end(self, state: str) -> bool:
        """Whether what was told on its channel is the end."""

    def ends(self, ids: Sequence[UUID]) -> Mapping[UUID, Look]:
        """The ends of these, whole, as the ledger has them. One that goes on is left out."""

    def forget(self, one: UUID) -> None:
        """Nobody watches it any more."""


class JobTopic:
    """Jobs."""

    def __init__(self, progress: ProgressService, ledger: Ledger, waits_of: WaitsOf) -> None:
        self._progress = progress
        self._ledger = ledger
        self._waits_of = waits_of
        self._waits: dict[UUID, tuple[float, Wait | None]] = {}

    def channel(self, one: UUID) -> str:
        """The key of its progress."""
        return PROGRESS_KEY.format(id=one)

    def has_text(self, one: UUID) -> bool:
        """A generation that was asked to."""
        with self._ledger.transaction() as unit:
            return unit.jobs.is_streamed(one)

    def look(self, ids: Sequence[UUID], only_end: Collection[UUID] = ()) -> dict[UUID, Look]:
        """From Redis, or from the ledger what is missing there or old, and what they wait for."""
        found = self._progress.read(ids)
        queued = [one for one, job in found.items() if job.state is JobState.QUEUED]
        waits = self._waiting([one for one in queued if one not in only_end])
        return {one: _state(job, waits.get(one)) for one, job in found.items()}

    def _waiting(self, ids: Sequence[UUID]) -> dict[UUID, Wait | None]:
        """What these wait for, as of the last seconds."""
        now = time.monotonic()
        old = [one for one in ids if now - self._waits.get(one, NEVER)[0] > WAITS_SECONDS]
        if old:
            new = self._waits_of(old)
            self._waits |= {one: (now, new.get(one)) for one in old}
        return {one: self._waits[one][1] for one in ids}

    def says_end(self, state: str) -> bool:
        """Whether it is a final state."""
        return state in FINAL_STATES

    def ends(self, ids: Sequence[UUID]) -> dict[UUID, Look]:
        """The whole jobs, with their results."""
        with self._ledger.single() as unit:
            rows = unit.jobs.get_all(ids, with_results=True)
            views = [JobView.model_validate(row) for row in rows]
        return {view.id: job_end(view) for view in views if view.state.is_final}

    def forget(self, one: UUID) -> None:
        """Forget what it waited for."""
        self._waits.pop(one, None)


class RunTopic:
    """Runs."""

    def __init__(self, progress: RunProgress, ledger: Ledger) -> None:
        self._progress = progress
        self._ledger = ledger
        self._rates: dict[UUID, Rate] = {}

    def channel(self, one: UUID) -> str:
        """The key of its progress."""
        return RUN_KEY.format(id=one)

    def has_text(self, one: UUID) -> bool:
        """A run's answers are too many to be read as they come."""
        return False

    def look(self, ids: Sequence[UUID], only_end: Collection[UUID] = ()) -> dict[UUID, Look]:
        """From Redis, or from the ledger what is missing there or old."""
        return {one: self._seen(found) for one, found in self._progress.read_all(ids).items()}

    def says_end(self, state: str) -> bool:
        """Whether it is a final state."""
        return state in FINAL_RUN_STATES

    def ends(self, ids: Sequence[UUID]) -> dict[UUID, Look]:
        """The whole runs."""
        with self._ledger.transaction() as unit:
            found = [unit.runs.get(one) for one in ids]
            views = [RunView.of(run) for run in found if run is not None]
        return {view.id: run_end(view) for view in views if view.state.is_final}

    def forget(self, one: UUID) -> None:
        """Forget how quickly it went."""
        self._rates.pop(one, None)

    def _seen(self, run: RunSnapshot) -> Look:
        rate = self._rates.setdefault(run.run_id, Rate())
        rate.add(time.monotonic(), run.done)
        speed = rate.per_second()
        data = {
            "id": str(run.run_id),
            "state": run.state,
            "total": run.total,
            "succeeded": run.succeeded,
            "failed": run.failed,
            "reused": run.reused,
            "cost_usd": run.cost_usd,
            "eta_seconds": round((run.total - run.done) / speed) if speed else None,
            "items_per_second": None if speed is None else round(speed, 1),
        }
        return Look("progress", dump_json(data).decode(), run.state, run.state.is_final)


def job_end(view: JobView) -> Look:
    """The last event of a job: all of it."""
    text = None
    if view.kind is JobKind.GENERATION and view.state is JobState.SUCCEEDED and view.result:
        text = view.result["text"]
    return Look(
        END, view.model_dump_json(), view.state, view.state.is_final, text, attempt=view.attempt
    )


def run_end(view: RunView) -> Look:
    """The last event of a run: all of it."""
    return Look(END, _RUN.dump_json(view).decode(), view.state, view.state.is_final)


def _state(job: Progress, waits: Wait | None) -> Look:
    data = {
        "id": str(job.job_id),
        "state": job.state,
        "current": job.current,
        "total": job.total,
        "attempt": job.attempt,
        "error_code": job.error_code or None,
        "error": job.error or None,
        "waits": None if waits is None else waits.model_dump(mode="json"),
    }
    return Look("state", dump_json(data).decode(), job.state, job.state.is_final)
