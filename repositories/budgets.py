"""Budgets: what keys, users and the deployment may spend, and what they have spent.

A budget's sums are what its attempts come to: each counts at its cost, and at the most it can cost
while that isn't known (`attempts.reserved_usd`). `count_anew` computes them from the attempts. All
else changes them by differences, under the budget's lock:

* a call that is about to leave adds the most it can cost (`locked`, by `services/budgets/`);
* a settled attempt adds what its cost differs from that (`note_settled`, by `jobs/attempts.py`).

A transaction locks budgets last, after jobs, attempts and runs, and all of them by one statement in
one order, so that no two wait for each other. So what attempts were settled for waits for the
transaction's end, or for the calls that it lets leave.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple, cast
from uuid import UUID

from sqlalchemy import Table, delete, event, func, or_, select, text, true, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from promptstack.repositories.base import BaseRepository
from promptstack.repositories.budget_models import DEPLOYMENT, Budget
from promptstack.repositories.models import Attempt, AttemptState, Billing
from promptstack.repositories.wire_values import BatchStatement, array_literal

_KEY = "promptstack.settled"
ZERO = Decimal(0)


class Window(StrEnum):
    """How long a cap counts, by the calendar in UTC."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


class Owner(NamedTuple):
    """Whose call it is: its budgets are those of both, and the deployment's."""

    user_id: UUID | None
    api_key_id: UUID | None

    @property
    def subjects(self) -> set[UUID]:
        """The budgets that may count its calls."""
        return {DEPLOYMENT, *(id_ for id_ in self if id_ is not None)}


class Settled(NamedTuple):
    """What an attempt came to, against what was reserved for it."""

    owner: Owner
    day: date
    """On which it began."""
    change_usd: Decimal


@dataclass
class Spending:
    """One budget, while it is locked: what it allows, and what it has counted."""

    subject: UUID
    user_id: UUID | None
    api_key_id: UUID | None
    caps: dict[Window, Decimal]
    day: date
    spent: dict[Window, Decimal]

    def turn_to(self, today: date) -> None:
        """Begin a new day, if it is one, and a new month."""
        if today > self.day:
            self.spent[Window.DAY] = ZERO
            if (today.year, today.month) != (self.day.year, self.day.month):
                self.spent[Window.MONTH] = ZERO
            self.day = today

    def add(self, usd: Decimal, day: date) -> None:
        """Count money of a call that began on `day`."""
        self.spent[Window.TOTAL] += usd
        if (day.year, day.month) == (self.day.year, self.day.month):
            self.spent[Window.MONTH] += usd
        if day == self.day:
            self.spent[Window.DAY] += usd


class BudgetRepository(BaseRepository[Budget]):
    """The table of budgets."""

    model = Budget

    def get_all(self, subjects: Collection[UUID] | None = None) -> list[Spending]:
        """The budgets of these subjects, or all, as they stand today; the deployment's first."""
        query = select(*_COLUMNS).order_by(Budget.subject)
        if subjects is not None:
            query = query.where(Budget.subject.in_(subjects))
        found = [_spending(row) for row in self._session.execute(query)]
        today = self.today()
        for one in found:
            one.turn_to(today)
        return found

    def today(self) -> date:
        """The day in UTC, by the clock of the database."""
        return cast("date", self._session.scalar(_TODAY))

    @contextmanager
    def locked(self, subjects: Collection[UUID]) -> Iterator[dict[UUID, Spending]]:
        """Lock the budgets of these subjects that have one; store at the end what they count.

        They have counted what this transaction has settled, and are all at the same day.
        """
        settled = _take_settled(self._session)
        wanted = set(subjects).union(*(one.owner.subjects for one in settled))
        rows = self._session.execute(_LOCK, {"subjects": array_literal(list(wanted))}).all()
        found = {row.subject: _spending(row) for row in rows}
        # Of two transactions around midnight, the older one may come last.
        today = max([row.today for row in rows] + [one.day for one in found.values()], default=None)
        for spending in found.values():
            spending.turn_to(cast("date", today))
        for one in settled:
            for subject in one.owner.subjects & found.keys():
                found[subject].add(one.change_usd, one.day)
        yield found
        if found:
            _STORE.run(self._session, [_row(spending) for spending in found.values()])

    def under_way(self, subject: UUID, day: date) -> dict[Window, Decimal]:
        """What is reserved for calls under way, which may cost less; of those since `day`, too."""
        began = func.date(func.timezone("UTC", Attempt.started_at))
        windows = (began >= day, began >= day.replace(day=1), true())
        row = self._session.execute(
            select(
                *(
                    func.coalesce(func.sum(Attempt.reserved_usd).filter(window), 0)
                    for window in windows
                )
            ).where(
                _of(subject),
                # As in the index.
                Attempt.billing == Billing.UNKNOWN,
                Attempt.state == AttemptState.STARTED,
            )
        ).one()
        return dict(zip(Window, map(Decimal, row), strict=True))

    def put(self, owner: Owner, caps: dict[Window, Decimal | None]) -> bool:
        """Set caps; False where there is no budget yet. What has none is deleted."""
        subject = _subject(owner)
        values = {f"{window}_cap_usd": cap for window, cap in caps.items()}
        changed = self._session.scalar(
            update(Budget)
            .where(Budget.subject == subject)
            .values(**values)
            .returning(Budget.subject)
            .execution_options(synchronize_session=False)
        )
        if changed is not None:
            none_left = [getattr(Budget, f"{window}_cap_usd").is_(None) for window in Window]
            self._session.execute(
                delete(Budget)
                .where(Budget.subject == subject, *none_left)
                .execution_options(synchronize_session=False)
            )
        return changed is not None

    def begin_counting(self, owner: Owner) -> None:
        """Add a budget without caps: from the commit on, calls that leave are counted."""
        self._session.execute(
            insert(Budget)
            .values(
                user_id=owner.user_id, api_key_id=owner.api_key_id, day=_TODAY.scalar_subquery()
            )
            .on_conflict_do_nothing()
        )

    def wait_for_calls(self) -> None:
        """Wait until every transaction has ended that may record a call without counting it.

        Others wait meanwhile, so commit at once.
        """
        self._session.execute(text("LOCK TABLE attempts IN SHARE MODE"))

    def reserve_under_way(self, owner: Owner) -> None:
        """Have calls counted that were recorded before, and whose cost isn't known yet."""
        self._session.execute(
            update(Attempt)
            .where(
                _of(_subject(owner)),
                Attempt.billing == Billing.UNKNOWN,
                Attempt.reserved_usd.is_(None),
            )
            .values(reserved_usd=func.coalesce(Attempt.expected_cost_usd, 0))
            .execution_options(synchronize_session=False)
        )

    def count_anew(self, owner: Owner) -> bool:
        """Compute a budget's sums from its attempts. False where its day has changed meanwhile.

        Calls go on meanwhile: what they add between the two statements is kept.
        """
        subject = _subject(owner)
        # One at a time: each adds what is missing, and two would add it twice.
        self._session.execute(_LOCK_COUNT)
        values = {"subject": subject, "deployment": DEPLOYMENT}
        row = self._session.execute(_COUNT, values).one()
        changed = self._session.scalar(
            update(Budget)
            .where(Budget.subject == subject, Budget.day == row.at_day)
            .values(
                {
                    f"{window}_usd": getattr(Budget, f"{window}_usd") + getattr(row, window)
                    for window in Window
                }
            )
            .returning(Budget.subject)
            .execution_options(synchronize_session=False)
        )
        return changed is not None

    def delete_of(self, owner: Owner) -> None:
        """Delete a budget: nothing is counted any more."""
        self._session.execute(
            delete(Budget)
            .where(Budget.subject == _subject(owner))
            .execution_options(synchronize_session=False)
        )


def note_settled(session: Session, settled: Sequence[Settled]) -> None:
    """Have budgets count, at the end of the session's transaction, what attempts came to."""
    if not settled:
        return
    if _KEY not in session.info:
        session.info[_KEY] = []
        event.listen(session, "before_commit", _count_settled)
    session.info[_KEY] += settled


def _count_settled(session: Session) -> None:
    if session.info[_KEY]:
        with BudgetRepository(session).locked(()):
            pass


def _take_settled(session: Session) -> list[Settled]:
    waiting: list[Settled] = session.info.get(_KEY, [])
    if waiting:
        session.info[_KEY] = []
    return waiting


def _subject(owner: Owner) -> UUID:
    return owner.api_key_id or owner.user_id or DEPLOYMENT


def _of(subject: UUID) -> Any:
    if subject == DEPLOYMENT:
        return true()
    return or_(Attempt.user_id == subject, Attempt.api_key_id == subject)


def _spending(row: Any) -> Spending:
    caps = {window: getattr(row, f"{window}_cap_usd") for window in Window}
    return Spending(
        row.subject,
        row.user_id,
        row.api_key_id,
        {window: cap for window, cap in caps.items() if cap is not None},
        row.day,
        {window: getattr(row, f"{window}_usd") for window in Window},
    )


def _row(spending: Spending) -> dict[str, Any]:
    spent = {f"{window}_usd": usd for window, usd in spending.spent.items()}
    return {"subject": spending.subject, "day": spending.day, **spent}


_BUDGETS = cast("Table", Budget.__table__)
_COLUMNS = tuple(_BUDGETS.c)
_TODAY = select(func.date(func.timezone("UTC", func.now())))
_LOCK = text(
    "SELECT *, CAST(now() AT TIME ZONE 'UTC' AS date) AS today FROM budgets "
    "WHERE subject = ANY (CAST(:subjects AS uuid[])) ORDER BY subject FOR NO KEY UPDATE"
)
_STORE = BatchStatement(
    "subject uuid, day date, day_usd numeric, month_usd numeric, total_usd numeric",
    """
UPDATE budgets SET
    day = given.day,
    day_usd = given.day_usd,
    month_usd = given.month_usd,
    total_usd = given.total_usd
FROM given WHERE budgets.subject = given.subject
RETURNING budgets.subject
""",
)

_LOCK_COUNT = text("SELECT pg_advisory_xact_lock(hashtext('count budgets'))")
_COUNT = text(
    """
SELECT budgets.day AS at_day,
    coalesce(sum(usd) FILTER (WHERE calls.day = budgets.day), 0) - day_usd AS day,
    coalesce(sum(usd) FILTER (WHERE date_trunc('month', calls.day)
        = date_trunc('month', budgets.day)), 0) - month_usd AS month,
    coalesce(sum(usd), 0) - total_usd AS total
FROM budgets LEFT JOIN LATERAL (
    SELECT CAST(started_at AT TIME ZONE 'UTC' AS date) AS day,
        CASE WHEN billing = 'unknown' THEN held ELSE coalesce(cost_usd, held) END AS usd
    FROM attempts CROSS JOIN LATERAL coalesce(reserved_usd, expected_cost_usd, 0) AS held
    WHERE :subject = :deployment OR attempts.user_id = :subject OR attempts.api_key_id = :subject
) AS calls ON true
WHERE subject = :subject
GROUP BY budgets.subject
"""
)
"""What the sums of a budget lack, and its day: one statement, which sees one moment."""
