"""A budget begins to count: its sums are computed from the attempts that are there."""

from typing import Any
from uuid import UUID

from sqlalchemy import func, or_, text, true, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from promptstack.repositories.budget_models import DEPLOYMENT, Budget
from promptstack.repositories.budgets.spending import Owner, Window
from promptstack.repositories.models import Attempt, Billing


class BudgetCounting:
    """Has calls counted, those from before and those that go on meanwhile."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def begin_counting(self, owner: Owner) -> None:
        """Add a budget without caps: from the commit on, calls that leave are counted."""
        self._session.execute(
            insert(Budget)
            .values(user_id=owner.user_id, api_key_id=owner.api_key_id, day=_TODAY)
            .on_conflict_do_nothing()
        )

    def writers(self) -> set[str]:
        """The open transactions that may record a call.

        Each statement locks its tables before it looks at rows. So one that did not see a budget
        that is committed now either is among these or has ended. To ask holds up nobody, as LOCK
        TABLE would, behind which all others wait.
        """
        return set(self._session.scalars(_WRITERS))

    def reserve_under_way(self, owner: Owner) -> None:
        """Have calls counted that were recorded before, and whose cost isn't known yet."""
        self._session.execute(
            update(Attempt)
            .where(
                calls_of(owner.subject),
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
        subject = owner.subject
        # One at a time: each adds what is missing, and two would add it twice.
        self._session.execute(_LOCK_COUNT, {"subject": str(subject)})
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


def calls_of(subject: UUID) -> Any:
    """The attempts that a budget counts."""
    if subject == DEPLOYMENT:
        return true()
    return or_(Attempt.user_id == subject, Attempt.api_key_id == subject)


_TODAY = func.date(func.timezone("UTC", func.now()))
_WRITERS = text(
    "SELECT virtualtransaction FROM pg_locks WHERE relation = CAST('attempts' AS regclass) "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND granted "
    "AND mode NOT IN ('AccessShareLock', 'RowShareLock', 'ShareUpdateExclusiveLock', 'ShareLock')"
)
_LOCK_COUNT = text("SELECT pg_advisory_xact_lock(hashtext('count budget ' || :subject))")
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
