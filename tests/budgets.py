"""What tests of spend caps need: a ledger whose clock can be set, and the sums by its attempts."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from promptstack.repositories.budget_models import DEPLOYMENT
from promptstack.repositories.budgets.spending import Owner
from promptstack.repositories.jobs.records import BeginStep, Claim, NewCall
from promptstack.repositories.models import JobKind
from promptstack.repositories.session import Ledger
from promptstack.tasks.worker_services import WorkerServices

COUNTED = """
SELECT budgets.subject, budgets.day_usd, budgets.month_usd, budgets.total_usd,
    coalesce(sum(usd) FILTER (WHERE calls.day = budgets.day), 0) AS day,
    coalesce(sum(usd) FILTER (WHERE to_char(calls.day, 'YYYYMM') = to_char(budgets.day, 'YYYYMM')),
        0) AS month,
    coalesce(sum(usd), 0) AS total
FROM budgets LEFT JOIN (
    SELECT user_id, api_key_id, (started_at AT TIME ZONE 'UTC')::date AS day, CASE
        WHEN billing = 'unknown' OR cost_usd IS NULL
        THEN coalesce(reserved_usd, expected_cost_usd, 0) ELSE cost_usd END AS usd FROM attempts
) AS calls ON subject IN (calls.user_id, calls.api_key_id, '00000000-0000-0000-0000-000000000000')
GROUP BY budgets.subject
"""
CLOCK = """
CREATE SCHEMA clock;
CREATE TABLE clock.shift (by interval NOT NULL);
INSERT INTO clock.shift VALUES ('0');
CREATE FUNCTION clock.now() RETURNS timestamptz STABLE LANGUAGE sql
    AS 'SELECT pg_catalog.now() + (SELECT by FROM clock.shift)';
ALTER TABLE attempts ALTER COLUMN started_at SET DEFAULT clock.now();
"""


def check_sums(ledger: Ledger) -> None:
    """Each budget's sums are those of its attempts."""
    with ledger.transaction() as unit:
        rows = unit.session.execute(text(COUNTED)).all()
    for row in rows:
        assert (row.day_usd, row.month_usd, row.total_usd) == (row.day, row.month, row.total)


class Clock:
    """The clock of a test's ledger, for all connections that are opened from now on."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        with ledger.transaction() as unit:
            unit.session.execute(text(CLOCK))
            name = unit.session.scalar(text("SELECT current_database()"))
            unit.session.execute(
                text(f"ALTER DATABASE {name} SET search_path = clock, public, pg_catalog")
            )
        ledger.close()

    def set(self, to: datetime) -> None:
        with self._ledger.transaction() as unit:
            unit.session.execute(
                text("UPDATE clock.shift SET by = :to - pg_catalog.now()"), {"to": to}
            )


def begun_job(ledger: Ledger, owner: Owner) -> Claim:
    """A running job of this owner, as a worker has claimed it."""
    job_id, worker_id = uuid4(), uuid4()
    with ledger.transaction() as unit:
        unit.session.execute(
            text(
                "INSERT INTO jobs (id, kind, state, user_id, api_key_id, provider, model, request, "
                "request_hash, max_retries, attempt, worker_id, expires_at) VALUES (:id, "
                "'generation', 'running', :user, :key, 'fake', 'fake-1', '{}', '', 3, 1, :worker, "
                "now() + interval '1 day')"
            ),
            {"id": job_id, "user": owner.user_id, "key": owner.api_key_id, "worker": worker_id},
        )
    return Claim(
        job_id=job_id,
        attempt=1,
        worker_id=worker_id,
        user_id=owner.user_id,
        provider="fake",
        model="fake-1",
        request={},
        failures=0,
        max_retries=3,
        is_bulk=False,
        seconds_left=60.0,
        kind=JobKind.GENERATION,
    )


def call(claim: Claim, number: int, most: Decimal | None, expected: Decimal | None) -> BeginStep:
    """A call that is about to leave, which costs this at most."""
    new = NewCall(number, "fake", "fake-1", expected_cost_usd=expected, most_usd=lambda: most)
    return BeginStep(claim, new)


def owners(stack: WorkerServices) -> dict[str, Owner]:
    """Two users with keys, and the command line."""
    found = {"nobody": Owner(None, None)}
    with stack.ledger.transaction() as unit:
        for name in ("ada", "eve"):
            user_id = unit.users.create(email=f"{name}@example.org").id
            found[name] = Owner(user_id, None)
            for number in range(2 if name == "ada" else 1):
                key = unit.api_keys.create(user_id=user_id, name="k", key_hash=f"{name}{number}")
                found[f"{name}'s key {number}"] = Owner(user_id, key.id)
    return found


def spent(stack: WorkerServices, subject: UUID | None = None) -> Mapping[str, Decimal]:
    """What a budget has counted of today, this month and all time."""
    with stack.ledger.transaction() as unit:
        (found,) = unit.budgets.get_all(subjects=[subject or DEPLOYMENT])
    return {str(window): usd for window, usd in found.spent.items()}


def charge(stack: WorkerServices, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every token cost a dollar."""

    def dollar_a_token(
        *_: Any, input_tokens: int | None, output_tokens: int | None, **__: Any
    ) -> Decimal | None:
        if input_tokens is None or output_tokens is None:
            return None
        return Decimal(input_tokens + output_tokens)

    monkeypatch.setattr(stack.prices, "cost", dollar_a_token)
