"""What is asked of runs every second is found by indexes, however many runs and shards are over."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, text

from promptstack.repositories.models import new_id
from promptstack.repositories.run_models import Run, RunState
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.tasks.composition import PromptStack

OLD_RUNS = """
INSERT INTO runs (id, kind, state, name, provider, model, parameters, in_flight, max_retries,
                  expires_at, created_at, started_at, finished_at, total, next_position)
SELECT gen_random_uuid(), 'embedding', 'completed', '', 'local', 'any', '{}', 1, 1,
       now(), now() - interval '9 days', now() - interval '9 days', now() - interval '8 days', 9, 9
FROM generate_series(1, 10000)
"""
OLD_SHARDS = """
INSERT INTO jobs (id, kind, queue, state, run_id, provider, model, request, request_hash,
                  max_retries, expires_at, created_at, finished_at)
SELECT gen_random_uuid(), 'shard', 'embeddings-bulk', 'succeeded', id, 'local', 'any', '{}', '',
       1, now(), now(), now()
FROM (SELECT id FROM runs ORDER BY finished_at NULLS FIRST LIMIT 5) AS five,
     generate_series(1, 10000)
"""
ANSWERS = """
INSERT INTO answers (provider, model, content_hash, result, used_at)
SELECT 'demo', 'any', decode(md5(n::text), 'hex'), '{}', now() - n * interval '10 seconds'
FROM generate_series(1, 20000) n
"""
WEEK = 604_800.0
QUESTIONS: dict[str, Callable[[UnitOfWork, Run], object]] = {
    "failing": lambda unit, run: unit.scheduling.find_failing(["QUOTA_EXHAUSTED"]),
    "working": lambda unit, run: unit.scheduling.working_shards(),
    "users": lambda unit, run: unit.scheduling.users_to_serve("TRIED_LATER", 8, [new_id()]),
    "next": lambda unit, run: unit.scheduling.next_to_serve(
        run.user_id, "TRIED_LATER", 8, [new_id()]
    ),
    "done": lambda unit, run: unit.scheduling.find_done(),
    "is done": lambda unit, run: unit.scheduling.find_done(run.id),
    "unfinalized": lambda unit, run: unit.scheduling.find_unfinalized(),
    "is unfinalized": lambda unit, run: unit.scheduling.find_unfinalized(run.id),
    "failed shards": lambda unit, run: unit.scheduling.failed_shards(run),
    "failed finalizations": lambda unit, run: unit.scheduling.failed_finalizations(run),
    "queued shards": lambda unit, run: unit.scheduling.queued_shards(run),
    "workers": lambda unit, run: unit.runs.count_workers(run.id),
    "overdue": lambda unit, run: unit.run_maintenance.find_overdue(),
    "abandoned": lambda unit, run: unit.run_maintenance.find_abandoned(60.0),
    "half ended": lambda unit, run: unit.run_maintenance.find_half_ended(),
    "loads vectors": lambda unit, run: unit.scheduling.loads_vectors("local", "any", but=run.id),
    "old runs": lambda unit, run: unit.run_maintenance.prune(10 * WEEK),
    "old answers": lambda unit, run: unit.answers.prune(10 * WEEK),
}
WHOLE = (
    *("Seq Scan on runs", "Seq Scan on jobs", "Seq Scan on answers", "using jobs_of_run "),
    *("using runs_of_user ", "on runs_of_user "),
)
"""Plans that read whole tables, or all shards of a run, or all runs of a user."""


@contextmanager
def recorded(ledger: Ledger) -> Iterator[list[tuple[str, Any]]]:
    """The statements, with their parameters, that reach the database."""
    seen: list[tuple[str, Any]] = []

    def record(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        seen.append((statement, parameters))

    event.listen(ledger.engine, "before_cursor_execute", record)
    try:
        yield seen
    finally:
        event.remove(ledger.engine, "before_cursor_execute", record)


@pytest.fixture
def run(stack: PromptStack) -> Run:
    """One that goes on, among very many that are over, and with as many shards as they."""
    view = stack.runs.embed(["one", "two"], provider="local")
    for statement in (OLD_RUNS, OLD_SHARDS, ANSWERS):
        with stack.ledger.transaction() as unit:
            unit.session.execute(text(statement))
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("ANALYZE runs, jobs, answers"))
        found = unit.runs.get(view.id)
    assert found is not None
    assert found.state == RunState.RUNNING
    found.finished_at = found.created_at
    return found


def test_what_is_asked_every_second_reads_no_whole_table(stack: PromptStack, run: Run) -> None:
    slow: dict[str, str] = {}
    for name, ask in QUESTIONS.items():
        with stack.ledger.transaction() as unit, recorded(stack.ledger) as seen:
            ask(unit, run)
        with stack.ledger.transaction() as unit:
            for statement, parameters in seen:
                explain = unit.session.connection().exec_driver_sql
                plan = "\n".join(row[0] for row in explain("EXPLAIN " + statement, parameters))
                if any(whole in plan for whole in WHOLE):
                    slow[name] = plan
    assert not slow, "\n\n".join(f"{name}\n{plan}" for name, plan in slow.items())


def test_failed_shards_are_found_by_their_run(stack: PromptStack, run: Run) -> None:
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("UPDATE jobs SET state = 'failed' WHERE finished_at IS NOT NULL"))
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("ANALYZE jobs"))
        with recorded(stack.ledger) as seen:
            assert len(unit.scheduling.failed_shards(run)) == 10_000
            assert unit.scheduling.find_failing(["QUOTA_EXHAUSTED"]) == []
        for statement, parameters in seen:
            explain = unit.session.connection().exec_driver_sql
            plan = "\n".join(row[0] for row in explain("EXPLAIN " + statement, parameters))
            # By the run, or by the few jobs that have such an error: never by all jobs.
            assert "jobs_of_run_failed" in plan or "jobs_with_error" in plan
            assert "Seq Scan on jobs" not in plan
