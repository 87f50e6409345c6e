"""Usage: sums over attempts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, SQLColumnExpression, func, select
from sqlalchemy.orm import Session

from promptstack.config.models_file import Money
from promptstack.repositories.access_models import User
from promptstack.repositories.models import Attempt, AttemptState, Billing
from promptstack.repositories.pages import Page, PageQuery, read_page


class Group(StrEnum):
    """What usage can be summed by."""

    DAY = "day"
    USER = "user"
    PROVIDER = "provider"
    MODEL = "model"


_COLUMNS: Mapping[Group, SQLColumnExpression[Any]] = {
    Group.DAY: func.date(func.timezone("UTC", Attempt.started_at)),
    Group.USER: User.email,
    Group.PROVIDER: Attempt.provider,
    Group.MODEL: Attempt.model,
}


@dataclass(frozen=True)
class Usage:
    """What some calls came to. The fields that were not grouped by are None."""

    day: date | None
    """In UTC."""
    user: str | None
    """The user's email; None also for jobs of nobody."""
    provider: str | None
    model: str | None
    calls: int
    failed: int
    """Calls without an answer."""
    items: int
    """Texts that calls answered."""
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_usd: Money | None
    """Of the calls whose cost is known; None where that is nothing, and others' isn't known."""
    unknown_cost: int
    """Calls whose cost is not known."""
    mean_latency_seconds: float | None
    p95_latency_seconds: float | None
    limiter_wait_seconds: float
    """Together."""


@dataclass(frozen=True)
class Unsettled:
    """Calls of one state of which nobody knows whether they were billed."""

    state: AttemptState
    calls: int
    expected_tokens: int
    """Input and output together, as far as could be known before the calls."""
    expected_cost_usd: Money | None
    """Of the calls whose model has a known price; None where none has."""
    unknown_cost: int
    """Calls without one."""


class UsageRepository:
    """Sums over what providers were asked."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def sums(
        self,
        by: Sequence[Group],
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        user_id: UUID | None = None,
        provider: str | None = None,
        model: str | None = None,
    ) -> list[Usage]:
        """Sum the attempts that began from `since` until before `until`, in the groups' order."""
        done = Attempt.state == AttemptState.SUCCEEDED
        groups: list[Any] = [_COLUMNS[group].label(f"{group}_") for group in by]
        query = (
            select(
                *groups,
                func.count(),
                func.count().filter(~done),
                func.coalesce(func.sum(Attempt.items).filter(done), 0),
                func.coalesce(func.sum(Attempt.input_tokens), 0),
                func.coalesce(func.sum(Attempt.cached_tokens), 0),
                func.coalesce(func.sum(Attempt.output_tokens), 0),
                func.sum(Attempt.cost_usd),
                func.count().filter(Attempt.cost_usd.is_(None)),
                func.avg(Attempt.latency_seconds),
                func.percentile_cont(0.95).within_group(Attempt.latency_seconds),
                func.coalesce(func.sum(Attempt.limiter_wait_seconds), 0.0),
            )
            .select_from(Attempt)
            .outerjoin(User, Attempt.user_id == User.id)
        )
        conditions = {
            "since": since is not None and Attempt.started_at >= since,
            "until": until is not None and Attempt.started_at < until,
            "user": user_id is not None and Attempt.user_id == user_id,
            "provider": provider is not None and Attempt.provider == provider,
            "model": model is not None and Attempt.model == model,
        }
        for condition in conditions.values():
            if condition is not False:
                query = query.where(condition)
        if groups:
            query = query.group_by(*groups).order_by(*groups)
        rows = self._session.execute(query).all()
        return [_usage(by, tuple(row)) for row in rows if row[len(by)]]

    def unsettled(
        self, *, since: datetime | None = None, user_id: UUID | None = None
    ) -> list[Unsettled]:
        """Sum the calls that may have been paid for without an answer, by their state."""
        rows = self._session.execute(
            select(
                Attempt.state,
                func.count(),
                func.coalesce(func.sum(Attempt.expected_tokens), 0),
                func.sum(Attempt.expected_cost_usd),
                func.count().filter(Attempt.expected_cost_usd.is_(None)),
            )
            .where(*_unsettled(since, user_id))
            .group_by(Attempt.state)
            .order_by(Attempt.state)
        )
        return [
            Unsettled(AttemptState(state), calls, int(tokens or 0), cost, unknown)
            for state, calls, tokens, cost, unknown in rows
        ]

    def calls(
        self,
        asked: PageQuery,
        *,
        only_unsettled: bool = False,
        since: datetime | None = None,
        user_id: UUID | None = None,
    ) -> Page[Attempt]:
        """A page of calls, newest first."""
        conditions = _of(since, user_id)
        if only_unsettled:
            conditions = _unsettled(since, user_id)
        query = select(Attempt).where(*conditions)
        return read_page(self._session, query, Attempt.id, asked)


def _of(since: datetime | None, user_id: UUID | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if since is not None:
        conditions.append(Attempt.started_at >= since)
    if user_id is not None:
        conditions.append(Attempt.user_id == user_id)
    return conditions


def _unsettled(since: datetime | None, user_id: UUID | None) -> list[ColumnElement[bool]]:
    return [Attempt.billing == Billing.UNKNOWN, *_of(since, user_id)]


def _usage(by: Sequence[Group], row: tuple[Any, ...]) -> Usage:
    keys: dict[str, Any] = {str(group): None for group in Group}
    keys |= {str(group): value for group, value in zip(by, row, strict=False)}
    sums = dict(zip(_SUMS, row[len(by) :], strict=True))
    known = None if sums["unknown_cost"] and not sums["cost_usd"] else sums["cost_usd"]
    return Usage(**keys, **{**sums, "cost_usd": known})


_SUMS = (
    "calls",
    "failed",
    "items",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "cost_usd",
    "unknown_cost",
    "mean_latency_seconds",
    "p95_latency_seconds",
    "limiter_wait_seconds",
)
