"""The first cap of something: others' calls go on, little is read, and it counts from then on."""

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text

from promptstack.repositories.budgets.counting import BudgetCounting
from promptstack.repositories.budgets.spending import Owner
from promptstack.repositories.errors import LedgerConflict
from promptstack.repositories.jobs.records import Begun
from promptstack.services.budgets.admission import begin_calls
from promptstack.services.budgets.service import OF_DEPLOYMENT, Scope, Subject
from promptstack.tasks.worker_services import WorkerServices
from tests.budgets import begun_job, call, check_sums, owners, spent
from tests.processes import wait_until

ROWS = 100_000
ONE = Decimal(1)
FILL = """
INSERT INTO attempts (user_id, api_key_id, worker_id, number, call, provider, model, items)
SELECT NULL, gen_random_uuid(), gen_random_uuid(), 1, 0, 'fake', 'fake-1', 1
FROM generate_series(1, :rows)
"""


def test_nobodys_calls_wait_for_the_first_cap(stack: WorkerServices) -> None:
    """Though it waits itself, for somebody's long transaction."""
    owner = owners(stack)["ada's key 0"]
    engine = create_engine(stack.database_url)
    with ThreadPoolExecutor(1) as other, engine.connect() as writer:
        writer.execute(text("LOCK TABLE attempts IN ROW EXCLUSIVE MODE"))
        setting = other.submit(stack.budgets.set, Subject(Scope.KEY, owner.api_key_id), {"day": 1})
        wait_until(lambda: _has_begun(stack), "the cap to be on its way")
        for _ in range(100):
            with stack.ledger.transaction() as unit:
                unit.limit_locks(0.05)
                unit.session.execute(text("LOCK TABLE attempts IN ROW EXCLUSIVE MODE"))
        assert not setting.done()
        writer.rollback()
        assert setting.result(30.0) is not None
    engine.dispose()


def test_a_first_cap_does_not_wait_for_ever(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptstack.services.budgets.service.WAIT_SECONDS", 0.2)
    engine = create_engine(stack.database_url)
    with engine.connect() as writer:
        writer.execute(text("LOCK TABLE attempts IN ROW EXCLUSIVE MODE"))
        with pytest.raises(LedgerConflict, match="The cap is not set"):
            stack.budgets.set(OF_DEPLOYMENT, {"day": 1})
        assert stack.budgets.get_all() == []
        writer.rollback()
    engine.dispose()
    assert stack.budgets.set(OF_DEPLOYMENT, {"day": 1}) is not None


def _has_begun(stack: WorkerServices) -> bool:
    with stack.ledger.transaction() as unit:
        return bool(unit.session.scalar(text("SELECT count(*) FROM budgets")))


def test_a_key_whose_cap_is_taken_away_and_set_again_begins_once(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = owners(stack)["ada's key 0"]
    key = Subject(Scope.KEY, owner.api_key_id)
    begun: list[object] = []
    begin = BudgetCounting.begin_counting

    def note(self: BudgetCounting, who: Owner) -> None:
        begun.append(who)
        begin(self, who)

    monkeypatch.setattr(BudgetCounting, "begin_counting", note)
    assert stack.budgets.set(key, {"day": 1}) is not None
    assert stack.budgets.set(key, {"day": None}) is None
    assert stack.budgets.get_all() == []
    # What leaves meanwhile is counted, though nothing holds it up.
    with stack.ledger.transaction() as unit:
        steps = [call(begun_job(stack.ledger, owner), 0, None, None)]
        steps.append(call(begun_job(stack.ledger, owner), 0, 7 * ONE, 7 * ONE))
        assert all(isinstance(one, Begun) for one in begin_calls(unit, steps).values())
    assert stack.budgets.set(key, {"day": 1}) is not None
    assert begun == [owner._replace(user_id=None)]
    assert spent(stack, owner.api_key_id)["day"] == 7
    check_sums(stack.ledger)


def test_the_deployment_counts_nothing_once_its_last_cap_is_gone(stack: WorkerServices) -> None:
    """So that jobs pay no further statements for a cap that there was once."""
    stack.budgets.set(OF_DEPLOYMENT, {"day": 1})
    stack.budgets.set(OF_DEPLOYMENT, {"day": None})
    assert not _has_begun(stack)


@pytest.mark.parametrize("is_user", [False, True])
def test_a_first_cap_reads_the_calls_of_its_owner_by_an_index(
    stack: WorkerServices, is_user: bool
) -> None:
    owner = owners(stack)["ada's key 0"]
    subject = Subject(Scope.USER, owner.user_id) if is_user else Subject(Scope.KEY, owner[1])
    with stack.ledger.transaction() as unit:
        unit.session.execute(text(FILL), {"rows": ROWS})
        begin_calls(unit, [call(begun_job(stack.ledger, owner), 0, ONE, ONE)])
    sent: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if "attempts" in statement:
            sent.append((statement, parameters))

    with stack.ledger.transaction() as unit:
        unit.session.execute(text("ANALYZE attempts"))
    event.listen(stack.ledger.engine, "before_cursor_execute", note)
    assert stack.budgets.set(subject, {"day": 5}) is not None
    event.remove(stack.ledger.engine, "before_cursor_execute", note)
    plans = []
    with stack.ledger.transaction() as unit:
        for statement, parameters in sent:
            rows = unit.session.connection().exec_driver_sql(f"EXPLAIN {statement}", parameters)
            plans.append("\n".join(row[0] for row in rows))
    assert any("attempts_of_" in plan for plan in plans)
    assert not [plan for plan in plans if "Seq Scan on attempts" in plan]
    assert spent(stack, owner.api_key_id if not is_user else owner.user_id)["day"] == 1
