"""Attempts: what was asked of a provider, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Table,
    Update,
    bindparam,
    exists,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from promptstack.repositories.arrays import ArrayLiteral
from promptstack.repositories.base import BaseRepository
from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.models import Attempt, AttemptState, Billing, Job, JobState


@dataclass(frozen=True)
class NewCall:
    """A call that is about to leave."""

    call: int
    items: int
    expected_tokens: int | None
    expected_cost_usd: Decimal | None


class AttemptRepository(BaseRepository[Attempt]):
    """One row a provider call, written before the request leaves."""

    model = Attempt

    def start(
        self,
        claim: Claim,
        *,
        call: int,
        provider: str,
        model: str,
        items: int,
        expected_tokens: int | None = None,
        expected_cost_usd: Decimal | None = None,
    ) -> int:
        """Record that a call is about to leave; the attempt's id. The same call twice is one."""
        attempt_id: int = self._session.execute(
            _START,
            {
                "job_id": claim.job_id,
                "user_id": claim.user_id,
                "number": claim.attempt,
                "call": call,
                "worker_id": claim.worker_id,
                "provider": provider,
                "model": model,
                "items": items,
                "expected_tokens": expected_tokens,
                "expected_cost_usd": expected_cost_usd,
            },
        ).scalar_one()
        return attempt_id

    def settle(self, attempt_id: int, state: AttemptState, **outcome: Any) -> None:
        """Record what came of a call that was started."""
        values = {"state": state, **outcome}
        self._session.execute(_settle(tuple(values)), {"the_attempt": attempt_id, **_new(values)})

    def start_many(self, claim: Claim, calls: Sequence[NewCall]) -> list[tuple[int, bool]]:
        """Record that calls are about to leave; each attempt's id, and whether it is new.

        The same call twice is one: a commit may have gone well whose answer was lost.
        """
        names = ("call", "items", "expected_tokens", "expected_cost_usd")
        started = self._session.execute(
            _START_MANY,
            {
                "the_job": claim.job_id,
                "the_user": claim.user_id,
                "the_number": claim.attempt,
                "the_worker": claim.worker_id,
                "the_provider": claim.provider,
                "the_model": claim.model,
                **{f"new_{name}": [getattr(call, name) for call in calls] for name in names},
            },
        )
        by_call = {row[0]: (row[1], row[2]) for row in started}
        return [by_call[call.call] for call in calls]

    def begun(self, claim: Claim, calls: Sequence[int]) -> set[int]:
        """Those of the claim's calls that are on record."""
        query = select(Attempt.call).where(
            Attempt.job_id == claim.job_id,
            Attempt.number == claim.attempt,
            Attempt.call.in_(calls),
        )
        return set(self._session.scalars(query))

    def settle_many(self, settled: Sequence[Mapping[str, Any]]) -> set[int]:
        """Record what came of calls, each by its `attempt_id`, all with the same columns.

        The ids of those of which this is news: of others it was known, and is said again.
        """
        if not settled:
            return set()
        names = tuple(name for name in settled[0] if name != "attempt_id")
        rows = self._session.scalars(
            _settle_many(names),
            {f"new_{name}": [one[name] for one in settled] for name in ("attempt_id", *names)},
        )
        return set(rows)

    def are_under_way(self, run_id: UUID, *, but: UUID) -> bool:
        """Whether calls of a run are under way in other shards than the job `but`."""
        query = select(
            exists().where(
                Job.run_id == run_id,
                Job.id != but,
                Job.state == JobState.RUNNING,
                Attempt.job_id == Job.id,
                Attempt.number == Job.attempt,
                Attempt.state == AttemptState.STARTED,
            )
        )
        return bool(self._session.scalar(query))

    def count(self, job_id: UUID, error_code: str) -> int:
        """How many of a job's calls ended so."""
        query = select(func.count()).where(
            Attempt.job_id == job_id, Attempt.error_code == error_code
        )
        return self._session.scalar(query) or 0

    def totals(self, job_id: UUID) -> "Totals":
        """What a job's calls came to, over all its attempts."""
        done = Attempt.state == AttemptState.SUCCEEDED
        tokens = func.coalesce(Attempt.input_tokens, 0) + func.coalesce(Attempt.output_tokens, 0)
        row = self._session.execute(
            select(
                func.count(),
                func.coalesce(func.sum(Attempt.items).filter(done), 0),
                func.coalesce(func.sum(tokens), 0),
            ).where(Attempt.job_id == job_id)
        ).one()
        return Totals(*row)


@dataclass(frozen=True)
class Totals:
    """Sums over a job's calls."""

    calls: int
    items: int
    """Items that calls answered."""
    tokens: int


# Built once: to build a statement costs more than to run it.

_ATTEMPTS = cast("Table", Attempt.__table__)

_INSERT = insert(_ATTEMPTS).values(
    {
        name: bindparam(name)
        for name in (
            "job_id",
            "user_id",
            "number",
            "call",
            "worker_id",
            "provider",
            "model",
            "items",
            "expected_tokens",
            "expected_cost_usd",
        )
    }
)
_IS_NEW = literal_column("attempts.xmax = 0", Boolean)
"""PostgreSQL sets it where a row was updated instead."""
_START = _INSERT.on_conflict_do_update(
    constraint="attempts_job_number_call_key", set_={"items": _INSERT.excluded["items"]}
).returning(_ATTEMPTS.c.id)


def _unnested(name: str, column: str) -> ColumnElement[Any]:
    kind = ArrayLiteral(_ATTEMPTS.c[column].type)
    return func.unnest(bindparam(f"new_{name}", type_=kind)).label(name)


_NEW_CALLS = {
    "job_id": bindparam("the_job", type_=_ATTEMPTS.c.job_id.type),
    "user_id": bindparam("the_user", type_=_ATTEMPTS.c.user_id.type),
    "number": bindparam("the_number", type_=_ATTEMPTS.c.number.type),
    "worker_id": bindparam("the_worker", type_=_ATTEMPTS.c.worker_id.type),
    "provider": bindparam("the_provider", type_=_ATTEMPTS.c.provider.type),
    "model": bindparam("the_model", type_=_ATTEMPTS.c.model.type),
    **{
        name: _unnested(name, name)
        for name in ("call", "items", "expected_tokens", "expected_cost_usd")
    },
}
_INSERT_MANY = insert(_ATTEMPTS).from_select(list(_NEW_CALLS), select(*_NEW_CALLS.values()))
_START_MANY = _INSERT_MANY.on_conflict_do_update(
    constraint="attempts_job_number_call_key", set_={"items": _INSERT_MANY.excluded["items"]}
).returning(_ATTEMPTS.c.call, _ATTEMPTS.c.id, _IS_NEW)


@cache
def _settle(names: tuple[str, ...]) -> Update:
    columns = {name: bindparam(f"new_{name}", type_=_ATTEMPTS.c[name].type) for name in names}
    return (
        update(_ATTEMPTS)
        .where(_ATTEMPTS.c.id == bindparam("the_attempt"))
        .values(**columns, finished_at=func.now())
    )


@cache
def _settle_many(names: tuple[str, ...]) -> Update:
    arrays = [_unnested(name, name) for name in names]
    new = select(_unnested("attempt_id", "id"), *arrays).subquery()
    is_news = _ATTEMPTS.c.state != new.c.state
    if "billing" in names:
        is_news |= new.c.billing != Billing.UNKNOWN
    return (
        update(_ATTEMPTS)
        .where(_ATTEMPTS.c.id == new.c.attempt_id, _ATTEMPTS.c.billing == Billing.UNKNOWN, is_news)
        .values({name: new.c[name] for name in names} | {"finished_at": func.now()})
        .returning(_ATTEMPTS.c.id)
    )


def _new(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"new_{name}": value for name, value in values.items()}
