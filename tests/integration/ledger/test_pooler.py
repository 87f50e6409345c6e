"""PostgreSQL behind a pooler of transactions: nothing of ours stays in a session of others."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
from sqlalchemy import create_engine, text

from promptstack.config.settings import load_settings
from promptstack.embedded.servers import ServerUrls
from promptstack.repositories.content.vector_tables import index_name
from promptstack.repositories.migrations import upgrade
from promptstack.repositories.models import JobState
from promptstack.repositories.run_models import RunState
from promptstack.repositories.timeouts import IDLE_SECONDS
from promptstack.repositories.vector_indexes import VectorIndexes
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute
from tests.pooler import CONNECTIONS, Pooler, pooler_before
from tests.runs import in_ledger, work

LEFT = """
SELECT (SELECT array_agg(name || '=' || setting) FROM pg_settings WHERE source = 'session'
        AND name NOT IN ('application_name', 'client_encoding')) AS settings,
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS locks,
    (SELECT count(*) FROM pg_prepared_statements) AS statements,
    (SELECT count(*) FROM pg_cursors WHERE is_holdable) AS cursors,
    (SELECT count(*) FROM pg_listening_channels()) AS channels,
    (SELECT count(*) FROM pg_class WHERE relpersistence = 't') AS temporary,
    pg_backend_pid() AS pid
"""


@pytest.fixture
def pooler(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Pooler]:
    with pooler_before(environment["DATABASE_URL"]) as pooler:
        monkeypatch.setenv("DATABASE_URL", pooler.url)
        yield pooler


@pytest.fixture
def pooled(pooler: Pooler) -> Iterator[WorkerServices]:
    """Everything wired to a pooler, of which all sessions are clean at the end."""
    with WorkerServices.open(load_settings(_env_file=None)) as stack:
        yield stack
        assert_clean(pooler)


def assert_clean(pooler: Pooler) -> None:
    """Look into each session, which the pooler gives out in turn."""
    engine = create_engine(pooler.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        sessions = [connection.execute(text(LEFT)).one()._mapping for _ in range(2 * CONNECTIONS)]
    engine.dispose()
    assert len({session["pid"] for session in sessions}) == CONNECTIONS
    for session in sessions:
        left = {name: value for name, value in session.items() if name != "pid" and value}
        assert not left


def test_jobs_runs_and_searches_leave_nothing_in_a_session(pooled: WorkerServices) -> None:
    job = pooled.jobs.enqueue_generation("Say hello.")
    execute(pooled, job.id)
    assert pooled.jobs.get(job.id).state == JobState.SUCCEEDED
    document = pooled.jobs.enqueue_embedding("A text of its own.", source="handbook")
    execute(pooled, document.id)
    assert pooled.search.search("a text", limit=1)
    run = pooled.runs.embed(["one", "two"], provider="local")
    done = work(pooled, run.id)
    assert (done.state, done.error_code) == (RunState.COMPLETED, None)
    pooled.heartbeat.beat()
    pooled.liveness.run_once()
    pooled.reconciler.run_once()


def test_an_index_is_built_again_at_once(pooled: WorkerServices) -> None:
    """The lock of a session would stay with whichever connection took it."""
    with pooled.ledger.transaction() as unit:
        model = unit.embeddings.register_model("openai", "any", 256, with_index=False)
        rows = np.random.default_rng(1).standard_normal((50, 256), dtype=np.float32)
        hashes = [hashlib.sha256(f"{number}".encode()).digest() for number in range(50)]
        unit.embeddings.store(model, hashes, rows)
    indexes = VectorIndexes(pooled.ledger)
    for _ in range(3):
        assert indexes.build(model)
        with pooled.ledger.transaction() as unit:
            assert indexes.drop(unit, model)
    assert in_ledger(pooled, f"SELECT to_regclass('{index_name(model)}')") is None


def test_a_transaction_that_idles_is_ended_all_the_same(pooled: WorkerServices) -> None:
    for _ in range(CONNECTIONS + 1):
        limit = in_ledger(pooled, "SHOW idle_in_transaction_session_timeout")
        assert limit == f"{IDLE_SECONDS}s"


def test_migrations_leave_no_lock_that_the_next_would_wait_for(
    servers: ServerUrls, environment: dict[str, str]
) -> None:
    name = "migrated_by_a_pooler"
    admin = create_engine(servers.database_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = admin.url.set(database=name).render_as_string(hide_password=False)
    with pooler_before(url) as pooler:
        engine = create_engine(pooler.url)
        before, after = upgrade(engine)
        assert (before, upgrade(engine)) == (None, (after, after))
        engine.dispose()
        assert_clean(pooler)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()
