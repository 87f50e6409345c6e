"""No database session is open while a provider is asked."""

from sqlalchemy import create_engine, text

from promptstack.repositories.models import JobState
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.jobs import embed, generate, run


def test_no_connection_and_no_transaction_is_held_during_a_call(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    watcher = create_engine(stack.database_url, isolation_level="AUTOCOMMIT")
    seen: list[tuple[int, int]] = []
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'idle'"
    )

    def look() -> None:
        with watcher.connect() as connection:
            busy = connection.execute(query).scalar_one()
        seen.append((busy, stack.ledger.engine.pool.checkedout()))  # type: ignore[attr-defined]

    provider.on_call = look
    assert run(stack, generate(stack)).state is JobState.SUCCEEDED
    assert run(stack, generate(stack, stream=True)).state is JobState.SUCCEEDED
    assert run(stack, embed(stack, "a", "b", "c")).state is JobState.SUCCEEDED
    watcher.dispose()
    assert seen == [(0, 0)] * 4
