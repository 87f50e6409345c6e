"""The budgets of keys, users and the deployment.

A budget's sums are what its attempts come to: each counts at its cost, and at the most it can cost
while that isn't known (`attempts.reserved_usd`). `BudgetCounting` computes them from
the attempts. All
else changes them by differences, under the budget's lock:

* a call that is about to leave adds the most it can cost (`locked`, by `services/budgets/`);
* a settled attempt adds what its cost differs from that (`note_settled`, by `jobs/attempts.py`).

A transaction locks budgets last, after jobs, attempts and runs, and all of them by one statement in
one order, so that no two wait for each other. So what attempts were settled for waits for the
transaction's end, or for the calls that it lets leave.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    delete,
    event,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.orm import Session

from promptstack.repositories.access_models import ApiKey, User
from promptstack.repositories.base import BaseRepository
from promptstack.repositories.budget_models import DEPLOYMENT, Budget
from promptstack.repositories.budgets.counting import calls_of
from promptstack.repositories.budgets.spending import Owner, Settled, Spending, Window
from promptstack.repositories.models import Attempt, AttemptState, Billing
from promptstack.repositories.pages import Page, PageQuery, read_page
from promptstack.repositories.wire_values import BatchStatement, array_literal

_KEY = "promptstack.settled"


class BudgetRepository(BaseRepository[Budget]):
    """The table of budgets."""

    model = Budget

    def get_all(
        self,
        *,
        subjects: Collection[UUID] | None = None,
        user_id: UUID | None = None,
    ) -> list[Spending]:
        """All budgets with a cap, those of a user and their keys, or those of these subjects.

        They are as they stand today, and the deployment's comes first.
        """
        query = _budgets(subjects, user_id).order_by(Budget.subject)
        return list(map(_as_of_today, self._session.execute(query)))

    def page_of(self, user_id: UUID | None, asked: PageQuery) -> Page[Spending]:
        """A page of them."""
        query = _budgets(None, user_id)
        found = read_page(self._session, query, Budget.subject, asked, newest_first=False)
        return found.of(_as_of_today)

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
                calls_of(subject),
                # As in the index.
                Attempt.billing == Billing.UNKNOWN,
                Attempt.state == AttemptState.STARTED,
            )
        ).one()
        return dict(zip(Window, map(Decimal, row), strict=True))

    def put(
        self, owner: Owner, caps: Mapping[Window, Decimal | None], *, is_counted: bool = False
    ) -> bool:
        """Set caps; False where no budget counts yet.

        With `is_counted`, its sums were just computed. A key's goes on counting without any cap:
        its user may set and remove a cap again and again, and to begin anew reads all of the key's
        calls. Those of users and of the deployment are deleted.
        """
        subject = owner.subject
        values = {f"{window}_cap_usd": cap for window, cap in caps.items()}
        changed = self._session.scalar(
            update(Budget)
            .where(
                Budget.subject == subject,
                # A process of the version before doesn't say that it has counted.
                true() if is_counted else or_(Budget.is_counted, _has_caps()),
            )
            .values(**values, is_counted=True)
            .returning(Budget.subject)
            .execution_options(synchronize_session=False)
        )
        if changed is not None:
            self._session.execute(
                delete(Budget)
                .where(Budget.subject == subject, Budget.api_key_id.is_(None), ~_has_caps())
                .execution_options(synchronize_session=False)
            )
        return changed is not None


def _has_caps() -> ColumnElement[bool]:
    return or_(*(getattr(Budget, f"{window}_cap_usd").is_not(None) for window in Window))


def _budgets(subjects: Collection[UUID] | None, user_id: UUID | None) -> Select[Any]:
    """Those with a cap, or of these subjects; only those of a user and their keys."""
    query = (
        select(*_COLUMNS, _TODAY.label("today"), User.email, ApiKey.name, ApiKey.prefix)
        .outerjoin(User, User.id == Budget.user_id)
        .outerjoin(ApiKey, ApiKey.id == Budget.api_key_id)
        .where(_has_caps() if subjects is None else Budget.subject.in_(subjects))
    )
    if user_id is None:
        return query
    return query.where(or_(Budget.user_id == user_id, ApiKey.user_id == user_id))


def _as_of_today(row: Any) -> Spending:
    spending = _spending(row)
    spending.turn_to(row.today)
    spending.name = row.email or " ".join(filter(None, (row.name, row.prefix)))
    return spending


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


def counts_calls_of(jobs: Table) -> ColumnElement[bool]:
    """Whether a budget counts the calls of a job."""
    subjects = [jobs.c.user_id, jobs.c.api_key_id, literal(DEPLOYMENT)]
    return exists().where(Budget.subject.in_(subjects))


_BUDGETS = cast("Table", Budget.__table__)
_COLUMNS = tuple(_BUDGETS.c)
_TODAY = func.date(func.timezone("UTC", func.now()))
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
