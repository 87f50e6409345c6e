"""What a worker's upkeep asks of PostgreSQL every second, while nothing needs to be done."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from sqlalchemy import Engine, event

from promptstack.repositories import signs
from promptstack.repositories.jobs import heartbeats
from promptstack.repositories.jobs.outbox import RESTARTED_SECONDS
from promptstack.repositories.limited_statement import limited
from promptstack.services.maintenance.outbox import PATIENCE_SECONDS
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import claimed, sql

MOST_STATEMENTS = 13
"""Of a heartbeat and of all steps together, limits and locks included: one each for events that are
due, and for what is deleted of collections."""


BACKLOG = """
INSERT INTO jobs (id, kind, state, worker_id, provider, model, request, request_hash, max_retries,
                  expires_at, rung_at, rung_epoch)
SELECT gen_random_uuid(), 'generation', CASE WHEN n % 100 = 0 THEN 'running' ELSE 'queued' END,
       CASE WHEN n % 100 = 0 THEN gen_random_uuid() END, 'demo', 'demo', '{}', '', 3,
       now() + interval '1 day', now() - interval '1 minute', :epoch
FROM generate_series(1, 20000) AS n
"""


class Statement(NamedTuple):
    """One that reached the database."""

    text: str
    given: Any


@contextmanager
def counted(*engines: Engine) -> Iterator[list[Statement]]:
    """The statements that reach the database."""
    seen: list[Statement] = []

    def record(_c: object, _cursor: object, statement: str, given: Any, *_: object) -> None:
        seen.append(Statement(statement, given))

    def look(connection: Any, seconds: float, query: str, given: Any) -> Any:
        seen.append(Statement(query, given))
        return limited(connection, seconds, query, given)

    for engine in engines:
        event.listen(engine, "before_cursor_execute", record)
    try:
        with patch.object(signs, "limited", look), patch.object(heartbeats, "limited", look):
            yield seen
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", record)


@pytest.fixture
def statements_of_a_round(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    # The tests' Redis was started a moment ago, and its restart would be looked into.
    monkeypatch.setattr(stack.publisher, "uptime", lambda: RESTARTED_SECONDS + 1)

    def run_once() -> list[str]:
        for _ in range(2):  # the first may have something to do
            with counted(stack.ledger.engine, stack.heartbeat_ledger.engine) as seen:
                stack.heartbeat.beat()
                stack.reconciler.run_once()
        return [statement.text for statement in seen]

    return run_once


def test_a_round_costs_the_same_idle_and_busy(
    stack: WorkerServices, statements_of_a_round: Callable[[], list[str]]
) -> None:
    idle = statements_of_a_round()
    assert len(idle) <= MOST_STATEMENTS, "\n".join(idle)
    with ExitStack() as running:
        for _ in range(5):
            claim = claimed(stack, stack.jobs.enqueue_generation("x"))
            handle = running.enter_context(stack.active_jobs.enter(claim.job_id))
            handle.attempt = claim.attempt
        for _ in range(20):
            stack.jobs.enqueue_generation("x")
        # A backlog: sent so long ago that it might be lost, but its queue is not empty.
        old = {"seconds": PATIENCE_SECONDS + 5}
        sql(stack, "UPDATE jobs SET rung_at = now() - make_interval(secs => :seconds)", **old)
        assert statements_of_a_round() == idle


def test_there_are_no_signs_where_nothing_is_to_be_done(stack: WorkerServices) -> None:
    stack.heartbeat.beat()
    claimed(stack, stack.jobs.enqueue_generation("x"))
    stack.jobs.enqueue_generation("x")
    epoch = stack.publisher.epoch()
    with stack.ledger.statement() as statement:
        look = statement.signs
        assert not any(look.of_liveness(12.0))
        assert look.of_messages(epoch, 10.0) == (True, False, False, [], [], False)
        assert not any(look.of_cleanup(3_600.0, 86_400.0, 86_400.0))
        assert not any(look.of_runs(["QUOTA_EXHAUSTED"], 3_600.0, 86_400.0))


def test_signs_are_looked_for_without_reading_the_backlog(stack: WorkerServices) -> None:
    epoch = stack.publisher.epoch()
    sql(stack, BACKLOG, epoch=epoch)
    sql(stack, "ANALYZE jobs")
    with stack.ledger.statement() as statement, counted() as seen:
        statement.signs.of_liveness(12.0)
        statement.signs.of_messages(epoch, 10.0)
        statement.signs.of_cleanup(3_600.0, 86_400.0, 86_400.0)
        statement.signs.of_runs(["QUOTA_EXHAUSTED"], 3_600.0, 86_400.0)
    assert len(seen) == 4
    with stack.ledger.transaction() as unit:
        explain = unit.session.connection().exec_driver_sql
        for each in seen:
            plan = "\n".join(row[0] for row in explain(f"EXPLAIN {each.text}", each.given))
            assert "Seq Scan on jobs" not in plan, plan
