"""When a run can be done: by the limits that are known, and by the work that waits already."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from promptstack.config.setting_types import TierWeights
from promptstack.repositories.models import JobKind
from promptstack.repositories.run_models import Run, RunKind
from promptstack.repositories.runs.backlog import JobBacklog, RunBacklog
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import NotFound
from promptstack.services.execution.generation import EXPECTED_OUTPUT_TOKENS
from promptstack.services.limiter.terms import Limits
from promptstack.services.llm.answers import BYTES_PER_TOKEN
from promptstack.services.runs.intake.estimates import Estimator
from promptstack.services.runs.work import Weighted, Work, added, done_with, seconds_of

LEAST_SECONDS = 1.0
"""Of the time that a run has left: what has less is overdue."""


@dataclass(frozen=True)
class Finish:
    """When a run can be done at the earliest, as far as is known."""

    at: datetime
    seconds: float
    """From now."""
    is_late: bool
    """Whether that is after the run's deadline."""


class Feasibility:
    """Says when a run could be done, before it is started or while it runs.

    Users share a model's limits by the weights of their tiers, and a user's runs by the time that
    they have left: so much of the work that waits is done before, and no more. How long answers
    take and how many may be under way at once isn't counted, so it may well be later.
    """

    def __init__(
        self,
        ledger: Ledger,
        estimator: Estimator,
        limits_of: Callable[[str, str], Limits],
        weights: TierWeights,
    ) -> None:
        self._ledger = ledger
        self._estimator = estimator
        self._limits_of = limits_of
        self._weights = weights

    def of(self, run_id: UUID) -> Finish | None:
        """Return when the run can be done. None where no limit is known. Raises `NotFound`."""
        with self._ledger.transaction() as unit:
            run = unit.runs.get(run_id)
        if run is None:
            raise NotFound(f"There is no run {run_id}.")
        limits = self._limits_of(run.provider, run.model)
        own = self._estimator.work(run.id, run)
        if seconds_of(own, limits) is None:
            return None
        with self._ledger.transaction() as unit:
            now = unit.now()
            seconds = seconds_of(self._until_done(unit, run, own, now), limits) or 0.0
        at = now + timedelta(seconds=seconds)
        return Finish(at, seconds, at > run.expires_at)

    def _until_done(self, unit: UnitOfWork, run: Run, own: Work, now: datetime) -> Work:
        """Return all that is done until the run's own work is."""
        left = _left(run.expires_at, now)
        mine: list[Weighted] = []
        others: dict[UUID | None, list[Work]] = {}
        tiers: dict[UUID | None, str] = {}
        for one in unit.backlog.of_runs(run.provider, run.model):
            if one.run_id == run.id:
                continue
            work = self._of_run(unit, run, one)
            if one.user_id == run.user_id:
                mine.append(Weighted(work, left / _left(one.expires_at, now)))
            else:
                others.setdefault(one.user_id, []).append(work)
                tiers[one.user_id] = one.tier
        for jobs in unit.backlog.of_jobs(run.provider, run.model):
            work = self._of_jobs(jobs, run)
            if jobs.user_id == run.user_id:
                mine.append(Weighted(work, 1.0))
            else:
                others.setdefault(jobs.user_id, []).append(work)
                tiers[jobs.user_id] = jobs.tier
        user = unit.users.get(run.user_id) if run.user_id is not None else None
        weight = self._weights.of(user.tier if user is not None else "free")
        beside = [
            Weighted(added(works), self._weights.of(tiers[user_id]) / weight)
            for user_id, works in others.items()
        ]
        return done_with(done_with(own, mine), beside)

    def _of_run(self, unit: UnitOfWork, like: Run, one: RunBacklog) -> Work:
        """Estimate what is left of a run: as what is done of it, or else by its items' sizes."""
        if one.paid > 0:
            share = one.left / one.paid
            return Work(one.calls * share, one.input_tokens * share, one.output_tokens * share)
        size = unit.backlog.item_bytes(one.run_id) * one.left
        output = one.left * (one.max_tokens or EXPECTED_OUTPUT_TOKENS)
        tokens = (size / BYTES_PER_TOKEN, output)
        return self._estimator.work_of(one.kind, (like.provider, like.model), one.left, tokens)

    def _of_jobs(self, jobs: JobBacklog, like: Run) -> Work:
        kind = RunKind.GENERATION if jobs.kind == JobKind.GENERATION else RunKind.EMBEDDING
        tokens = (jobs.bytes / BYTES_PER_TOKEN, jobs.jobs * EXPECTED_OUTPUT_TOKENS)
        return self._estimator.work_of(kind, (like.provider, like.model), jobs.jobs, tokens)


def _left(deadline: datetime, now: datetime) -> float:
    return max(LEAST_SECONDS, (deadline - now).total_seconds())


def in_words(finish: Finish) -> str:
    """Say when it could be done, to the minute."""
    minutes = math.ceil(finish.seconds / 60)
    at = finish.at.strftime("%Y-%m-%d %H:%M UTC")
    return f"{at}, in {minutes // 60} h {minutes % 60} min"
