"""A connection that PostgreSQL has closed is replaced before anybody uses it."""

import select
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text

from promptstack.repositories import pooled_connections
from promptstack.repositories.session import Ledger
from tests.processes import PATIENCE

END = "SELECT pg_terminate_backend(pid) FROM unnest(:pids) AS pid"
LISTED = "SELECT pid FROM pg_stat_activity WHERE pid = ANY(:pids)"


@pytest.fixture
def ledger(environment: dict[str, str]) -> Iterator[Ledger]:
    opened = Ledger(environment["DATABASE_URL"], pool_size=3, max_overflow=0)
    yield opened
    opened.close()


@pytest.fixture
def pings(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The connections that were asked whether they live."""
    seen: list[object] = []
    ping = ledger.engine.dialect.do_ping

    def count(connection: object) -> bool:
        seen.append(connection)
        return bool(ping(connection))  # type: ignore[arg-type]

    monkeypatch.setattr(ledger.engine.dialect, "do_ping", count)
    return seen


def backend(ledger: Ledger) -> int:
    with ledger.transaction() as unit:
        return int(unit.session.scalar(text("SELECT pg_backend_pid()")) or 0)


def end(ledger: Ledger, pids: list[int]) -> None:
    """Let PostgreSQL close these sessions, as it does when it is restarted."""
    admin = create_engine(ledger.engine.url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(
            text("SELECT pg_terminate_backend(p) FROM unnest(:pids) AS p"), {"pids": pids}
        )
        while connection.execute(text(LISTED), {"pids": pids}).all():
            pass
    admin.dispose()


def test_one_that_was_closed_is_replaced_unseen_also_right_after_its_use(ledger: Ledger) -> None:
    with ExitStack() as all_:
        units = [all_.enter_context(ledger.transaction()) for _ in range(3)]
        pids = [int(one.session.scalar(text("SELECT pg_backend_pid()")) or 0) for one in units]
    end(ledger, pids)
    assert backend(ledger) not in pids
    with ledger.statement() as statement:
        assert statement.new_jobs.find([]) == {}
    with ExitStack() as all_:
        units = [all_.enter_context(ledger.transaction()) for _ in range(3)]
        after = [int(one.session.scalar(text("SELECT pg_backend_pid()")) or 0) for one in units]
    assert not set(after).intersection(pids)


def test_one_that_was_used_a_moment_ago_is_not_asked(
    ledger: Ledger, pings: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled_connections, "FRESH_SECONDS", 3_600.0)
    assert len({backend(ledger) for _ in range(5)}) == 1
    assert pings == []
    monkeypatch.setattr(pooled_connections, "FRESH_SECONDS", 0.0)
    assert backend(ledger)
    assert len(pings) == 1


def test_one_that_has_something_to_say_is_asked_and_kept(
    ledger: Ledger, pings: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled_connections, "FRESH_SECONDS", 3_600.0)
    with ledger.transaction() as unit:
        unit.session.execute(text("LISTEN news"))
        driver: Any = unit.session.connection().connection.driver_connection
    mine = backend(ledger)
    admin = create_engine(ledger.engine.url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("NOTIFY news"))
    admin.dispose()
    # Before it is used again: else the news may come with the next answer, and nothing is left.
    assert select.select([driver.fileno()], [], [], PATIENCE)[0]
    assert backend(ledger) == mine
    assert len(pings) == 1


def test_a_statement_leaves_its_connection_as_it_was(ledger: Ledger) -> None:
    begun: list[object] = []
    event.listen(ledger.engine, "begin", begun.append)
    with ledger.statement() as statement:
        assert statement.new_jobs.find([]) == {}
    assert begun == []
    with ledger.transaction() as unit:
        unit.users.create(email="ada@example.org")
        unit.session.rollback()
    with ledger.transaction() as unit:
        assert unit.users.get_many() == []
