"""Repositories, the unit of work, the ledger's errors and its migrations, on real PostgreSQL."""

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, inspect, make_url, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.orm import Session

import promptstack.repositories.migrations as ledger_migrations
from promptstack.config.errors import PromptStackError
from promptstack.embedded.servers import ServerUrls
from promptstack.repositories.access_models import Scope, User
from promptstack.repositories.content.vector_tables import TABLES
from promptstack.repositories.errors import (
    LedgerConflict,
    LedgerOutdated,
    LedgerSlow,
    LedgerUnavailable,
    UnknownFilter,
)
from promptstack.repositories.jobs.records import BeginStep, NewCall
from promptstack.repositories.migrations import pending, upgrade
from promptstack.repositories.models import Base, Job
from promptstack.repositories.pages import FIRST_PAGE, PageQuery
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.tasks.composition import PromptStack
from tests.processes import PATIENCE, wait_until

_numbers = itertools.count()
SECRET = "marmalade"


@pytest.fixture
def ledger(stack: PromptStack) -> Ledger:
    return stack.ledger


@pytest.fixture
def empty_database(servers: ServerUrls) -> Iterator[str]:
    """A database in which no migration has run."""
    name = f"empty_{next(_numbers)}"
    admin = create_engine(servers.database_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield make_url(servers.database_url).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def add_users(unit: UnitOfWork, *emails: str) -> list[UUID]:
    return [unit.users.create(email=email).id for email in emails]


def add_job(unit: UnitOfWork, **values: Any) -> Job:
    wanted: dict[str, Any] = {
        "kind": "generation",
        "provider": "demo",
        "model": "demo-1",
        "request": {},
        "request_hash": "",
        "max_retries": 3,
        "expires_at": datetime.now(UTC) + timedelta(days=1),
    }
    return unit.jobs.create(**{**wanted, **values})


# Every repository


def test_a_row_is_created_with_its_defaults_read_changed_and_deleted(ledger: Ledger) -> None:
    with ledger.transaction() as unit:
        user = unit.users.create(email="ada@example.org")
        user_id = user.id
        assert (user.name, user.preferred_provider) == ("", None)
        assert user.created_at.tzinfo is not None
    with ledger.transaction() as unit:
        found = unit.users.get(user_id)
        assert found is not None
        assert unit.users.update(found, name="Ada", preferred_provider="demo") is found
    with ledger.transaction() as unit:
        found = unit.users.get(user_id)
        assert found is not None
        kept = (found.email, found.name, found.preferred_provider)
        assert kept == ("ada@example.org", "Ada", "demo")
        unit.users.delete(found)
        assert unit.users.get(user_id) is None
    with ledger.transaction() as unit:
        assert unit.users.get(user_id) is None
        assert unit.users.get(uuid4()) is None


def test_pages_are_in_order_of_creation_and_complete(ledger: Ledger) -> None:
    with ledger.transaction() as unit:
        ids = add_users(unit, *(f"user{number}@example.org" for number in range(25)))
    with ledger.transaction() as unit:

        def page(**how: Any) -> list[UUID]:
            return [user.id for user in unit.users.get_many(**how)]

        assert page() == ids
        assert page(limit=7) == ids[:7]
        assert page(skip=20, limit=7) == ids[20:]
        assert page(skip=25) == []
        assert page(limit=0) == []
        assert page(newest_first=True, limit=3) == ids[:-4:-1]
        assert page(newest_first=True, skip=2, limit=2) == [ids[22], ids[21]]


@pytest.mark.parametrize("newest_first", [False, True])
def test_a_cursor_meets_every_row_once_though_others_add_rows(
    ledger: Ledger, newest_first: bool
) -> None:
    with ledger.transaction() as unit:
        ids = add_users(unit, *(f"user{number}@example.org" for number in range(10)))
    met: list[UUID] = []
    for number in range(10):
        with ledger.transaction() as unit:
            rows = unit.users.get_many(
                limit=3, after=met[-1] if met else None, newest_first=newest_first
            )
            met += [row.id for row in rows]
        with ledger.transaction() as unit:
            if len(met) < len(ids):
                add_users(unit, f"later{number}@example.org")
    assert [id_ for id_ in met if id_ in ids] == (ids[::-1] if newest_first else ids)
    assert len(set(met)) == len(met)


def test_filters_are_joined_by_and(ledger: Ledger) -> None:
    with ledger.transaction() as unit:
        wanted = unit.users.create(email="a@example.org", name="Ada", preferred_provider="demo")
        unit.users.create(email="b@example.org", name="Ada")
        unit.users.create(email="c@example.org", name="Eve", preferred_provider="openai")
        assert list(unit.users.get_many(name="Ada", preferred_provider="demo")) == [wanted]
        assert len(unit.users.get_many(name="Ada")) == 2
        assert len(unit.users.get_many(preferred_provider=None)) == 1
        assert list(unit.users.get_many(name="Ada", email="c@example.org")) == []


def test_an_unknown_column_is_refused_by_name(ledger: Ledger) -> None:
    with ledger.transaction() as unit:
        user = unit.users.create(email="a@example.org")
        for name in ("emial", "api_keys", "__table__", "metadata", "id;DROP"):
            wrong: dict[str, Any] = {name: 1}
            sentence = f"^User has no column {name}. Known: .*email"
            with pytest.raises(UnknownFilter, match=sentence):
                unit.users.get_many(**wrong)
            with pytest.raises(UnknownFilter, match=sentence):
                unit.users.update(user, **wrong)


def test_constraints_are_checked_at_create(ledger: Ledger) -> None:
    with pytest.raises(IntegrityError, match="state_known"), ledger.transaction() as unit:
        add_job(unit, state="resting")
    with pytest.raises(IntegrityError, match="kind_known"), ledger.transaction() as unit:
        add_job(unit, kind="poem")
    with ledger.transaction() as unit:
        assert unit.jobs.get_many() == []


# Users


def test_an_email_is_one_user_whatever_its_case(ledger: Ledger) -> None:
    with ledger.transaction() as unit:
        [user_id] = add_users(unit, "Ada@Example.org")
    with pytest.raises(IntegrityError, match="users_email_key"), ledger.transaction() as unit:
        add_users(unit, "aDA@eXAMPLE.ORG")
    with ledger.transaction() as unit:
        for spelling in ("Ada@Example.org", "ada@example.org", "ADA@EXAMPLE.ORG"):
            found = unit.users.get_by_email(spelling)
            assert found is not None
            assert (found.id, found.email) == (user_id, "Ada@Example.org")
        assert unit.users.get_by_email("nobody@example.org") is None


def test_a_user_is_found_by_the_very_email_that_was_stored(ledger: Ledger) -> None:
    """Python and PostgreSQL don't lower all letters alike; the unique index is PostgreSQL's."""
    emails = ["émile@example.org", "ÖMER@example.org", "İnci@example.org", "ΣΑΣ@example.org"]
    with ledger.transaction() as unit:
        ids = add_users(unit, *emails)
        found = [unit.users.get_by_email(email) for email in emails]
        assert [user and user.id for user in found] == ids


def test_search_takes_its_query_literally(ledger: Ledger) -> None:
    names = ["Ada", "50% off", "500 off", "snake_case", "snakeXcase", "back\\slash"]
    with ledger.transaction() as unit:
        for number, name in enumerate(names):
            unit.users.create(email=f"{number}@example.org", name=name)
        for query, expected in {
            "50%": ["50% off"],
            "%": ["50% off"],
            "_": ["snake_case"],
            "e_c": ["snake_case"],
            "\\": ["back\\slash"],
            "/": [],
            "ADA": ["Ada"],
            "example.org": names,
            "nobody": [],
        }.items():
            for asked, shown in ((FIRST_PAGE, expected), (PageQuery(limit=1), expected[:1])):
                found = unit.users.search(asked, query)
                assert [user.name for user in found.rows] == shown


def test_a_user_is_deleted_with_keys_and_jobs(ledger: Ledger) -> None:
    with ledger.transaction() as unit:
        user = unit.users.create(email="a@example.org")
        unit.api_keys.create(user_id=user.id, name="laptop", key_hash="0" * 64)
        job_id = add_job(unit, user_id=user.id).id
        user_id = user.id
    with ledger.transaction() as unit:
        found = unit.users.get(user_id)
        assert found is not None
        unit.users.delete(found)
    with ledger.transaction() as unit:
        assert unit.users.get(user_id) is None
        assert unit.api_keys.get_all(user_id) == []
        # Their prompts and answers go with them.
        assert unit.jobs.get(job_id) is None


def test_users_who_had_the_same_idempotency_key_can_both_be_deleted(ledger: Ledger) -> None:
    with ledger.transaction() as unit:
        ids = add_users(unit, "a@example.org", "b@example.org")
        for user_id in ids:
            add_job(unit, user_id=user_id, idempotency_key="order-1")
    for user_id in ids:
        with ledger.transaction() as unit:
            user = unit.users.get(user_id)
            assert user is not None
            unit.users.delete(user)
    with ledger.transaction() as unit:
        assert unit.jobs.get_many() == []


def test_what_was_paid_for_a_deleted_job_stays_on_record(ledger: Ledger) -> None:
    with ledger.transaction() as unit:
        job_id = add_job(unit).id
        claim = unit.steps.claim(job_id, uuid4())
        assert claim is not None
        unit.attempts.begin([BeginStep(claim, NewCall(0, claim.provider, claim.model))])
    with ledger.transaction() as unit:
        job = unit.jobs.get(job_id)
        assert job is not None
        unit.jobs.delete(job)
    with ledger.transaction() as unit:
        assert unit.jobs.get(job_id) is None
        [attempt] = unit.attempts.get_many()
        assert (attempt.job_id, attempt.model) == (None, claim.model)


# After a commit


class Diary(list[str]):
    """What was done, in order."""

    def note(self, what: list[str]) -> None:
        self.extend(what)


def test_actions_run_in_order_after_the_commit_and_see_it(ledger: Ledger) -> None:
    seen: list[int] = []

    def look(items: list[int]) -> None:
        with ledger.transaction() as other:
            seen.extend([len(other.users.get_many()), *items])

    with ledger.transaction() as unit:
        unit.after_commit(look, 7)
        add_users(unit, "a@example.org")
        unit.after_commit(seen.extend, -1)
        unit.after_commit(look, 8)
        look([])
    # Those of one action together, so that it can do them at once.
    assert seen == [0, 1, 7, 8, -1]


def test_a_rollback_forgets_the_actions(ledger: Ledger) -> None:
    diary = Diary()

    def broken() -> None:
        with ledger.transaction() as unit:
            unit.after_commit(diary.note, "never")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert diary == []


def test_a_failed_commit_forgets_the_actions(ledger: Ledger) -> None:
    diary = Diary()

    def broken() -> None:
        with ledger.transaction() as unit:
            unit.after_commit(diary.note, "never")
            unit.session.add(User(email="a@example.org"))
            unit.session.add(User(email="A@example.org"))

    with pytest.raises(IntegrityError):
        broken()
    assert diary == []


def test_releasing_a_savepoint_is_no_commit(ledger: Ledger) -> None:
    diary = Diary()
    with ledger.transaction() as unit:
        unit.after_commit(diary.note, "outside")
        with unit.session.begin_nested():
            unit.after_commit(diary.note, "inside")
            with unit.session.begin_nested():
                unit.after_commit(diary.note, "deeper")
        assert diary == []
    assert diary == ["outside", "inside", "deeper"]


def test_a_savepoint_rolled_back_takes_its_own_actions_and_no_others(ledger: Ledger) -> None:
    diary = Diary()
    with ledger.transaction() as unit:
        unit.after_commit(diary.note, "before")
        savepoint = unit.session.begin_nested()
        unit.after_commit(diary.note, "within")
        savepoint.rollback()
        unit.after_commit(diary.note, "after")
    assert diary == ["before", "after"]


def test_a_savepoint_takes_with_it_what_is_still_open_within_it(ledger: Ledger) -> None:
    diary = Diary()
    with ledger.transaction() as unit:
        outer = unit.session.begin_nested()
        with unit.session.begin_nested():
            unit.after_commit(diary.note, "released within")
        unit.session.begin_nested()
        unit.after_commit(diary.note, "open within")
        outer.rollback()
        with unit.session.begin_nested():
            unit.after_commit(diary.note, "another")
    assert diary == ["another"]


def test_two_transactions_on_one_session_run_each_its_own(ledger: Ledger) -> None:
    diary = Diary()
    with Session(ledger.engine) as session:
        unit = ledger.join(session)
        unit.after_commit(diary.note, "first")
        add_users(unit, "a@example.org")
        session.commit()
        assert diary == ["first"]
        again = ledger.join(session)
        again.after_commit(diary.note, "second")
        add_users(again, "b@example.org")
        session.rollback()
        assert diary == ["first"]
        ledger.join(session).after_commit(diary.note, "third")
        add_users(again, "c@example.org")
        session.commit()
    assert diary == ["first", "third"]
    with ledger.transaction() as unit:
        emails = [user.email for user in unit.users.get_many()]
    assert emails == ["a@example.org", "c@example.org"]


def test_a_session_closed_without_a_commit_forgets_the_actions(ledger: Ledger) -> None:
    diary = Diary()
    session = Session(ledger.engine)
    unit = ledger.join(session)
    unit.after_commit(diary.note, "never")
    add_users(unit, "a@example.org")
    session.close()
    # A closed session may be used again.
    add_users(ledger.join(session), "b@example.org")
    session.commit()
    session.close()
    assert diary == []


def test_repositories_of_a_joined_session_never_commit(ledger: Ledger) -> None:
    with Session(ledger.engine) as session:
        add_users(ledger.join(session), "a@example.org")
        session.rollback()
    with ledger.transaction() as unit:
        assert unit.users.get_many() == []


def test_one_transaction_at_a_time_has_a_lock(ledger: Ledger) -> None:
    with ledger.transaction() as one, ledger.transaction() as other:
        assert one.try_lock("reconciler")
        assert one.try_lock("reconciler")
        assert not other.try_lock("reconciler")
        assert other.try_lock("another")
        one.session.rollback()
        assert other.try_lock("reconciler")


# The ledger's errors


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg2://somebody:{SECRET}@127.0.0.1:1/none",
        f"postgresql+psycopg2://somebody:{SECRET}@/none?host=/nowhere",
    ],
)
def test_a_dead_database_is_unavailable(url: str) -> None:
    ledger = Ledger(url)

    def use() -> None:
        with ledger.transaction() as unit:
            unit.jobs.get_many()

    for ask in (ledger.ping, use):
        with pytest.raises(LedgerUnavailable, match="DATABASE_URL") as caught:
            ask()
        assert caught.value.transient
        assert SECRET not in f"{caught.value} {caught.value.detail}"
    ledger.close()


def test_a_broken_connection_is_unavailable_and_the_next_one_works(ledger: Ledger) -> None:
    killer = create_engine(ledger.engine.url, isolation_level="AUTOCOMMIT")
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    kill = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE " + others)

    def broken() -> None:
        with ledger.transaction() as unit:
            add_users(unit, "a@example.org")
            with killer.connect() as connection:
                connection.execute(kill)
            add_users(unit, "b@example.org")

    with pytest.raises(LedgerUnavailable):
        broken()
    with ledger.transaction() as unit:
        assert unit.users.get_many() == []
    # Also one that broke while it lay in the pool.
    with killer.connect() as connection:
        found = connection.execute(text(f"SELECT pid FROM pg_stat_activity WHERE {others}"))
        pid = found.scalar_one()
        assert connection.execute(kill).all()
    wait_until(lambda: not psutil.pid_exists(pid), "its server process to end")
    with ledger.transaction() as unit:
        assert unit.users.get_many() == []
    killer.dispose()


def test_a_first_connection_that_breaks_as_it_is_opened_is_an_outage(stack: PromptStack) -> None:
    """A job that meets it waits for the ledger; as a bug it would fail for good."""
    ledger = Ledger(stack.database_url)

    def break_off(dialect: Any, connection: Any) -> None:
        connection.invalidate()
        connection.exec_driver_sql("SELECT 1")

    ledger.engine.dialect.initialize = partial(break_off, None)  # type: ignore[method-assign]
    with pytest.raises(LedgerUnavailable, match="as it was opened"):
        ledger.ping()
    ledger.close()


def test_what_takes_too_long_is_slow_and_no_outage(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptstack.repositories.timeouts.IDLE_SECONDS", 0.3)

    def idle(*, is_asked: bool = True) -> None:
        with ledger.transaction() as unit:
            unit.session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '100ms'"))
            time.sleep(0.6)
            if is_asked:
                unit.now()

    def long() -> None:
        with ledger.transaction() as unit:
            unit.limit_statements(0.02)
            unit.session.execute(text("SELECT pg_sleep(5)"))

    steps: list[tuple[Callable[[], None], str]] = [
        (idle, "step is too large"),
        (partial(idle, is_asked=False), "step is too large"),
        (long, "statement took longer"),
    ]
    for step, said in steps:
        with pytest.raises(LedgerSlow, match=said) as caught:
            step()
        assert caught.value.transient
        assert not isinstance(caught.value, LedgerUnavailable)
        assert "DATABASE_URL" not in str(caught.value)


def test_a_connection_that_breaks_in_a_long_commit_is_an_outage(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptstack.repositories.timeouts.IDLE_SECONDS", 0.3)
    breaks_late = """
        CREATE TABLE pg_temp.late (number int);
        CREATE FUNCTION pg_temp.break() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          PERFORM pg_sleep(0.5), pg_terminate_backend(pg_backend_pid());
          RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER late AFTER INSERT ON pg_temp.late
          DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pg_temp.break();
        INSERT INTO pg_temp.late VALUES (1);
    """
    with pytest.raises(LedgerUnavailable), ledger.transaction() as unit:
        unit.session.execute(text(breaks_late))


def test_an_unmigrated_database_says_what_to_do(empty_database: str) -> None:
    ledger = Ledger(empty_database)
    with pytest.raises(LedgerOutdated, match="promptstack migrate"), ledger.transaction() as unit:
        unit.jobs.get_many()
    upgrade(ledger.engine)
    with ledger.transaction() as unit:
        assert unit.jobs.get_many() == []
        unit.session.execute(text("ALTER TABLE jobs DROP COLUMN rung_epoch"))
    with pytest.raises(LedgerOutdated, match="promptstack migrate"), ledger.transaction() as unit:
        unit.jobs.get_many()
    ledger.close()


def test_errors_hide_the_values_of_statements(ledger: Ledger) -> None:
    with pytest.raises(DataError) as caught, ledger.transaction() as unit:
        unit.session.execute(text("SELECT CAST(:prompt AS text), 1 / 0"), {"prompt": SECRET})
    assert "division by zero" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_value_too_large_for_an_index_is_not_called_an_outage(ledger: Ledger) -> None:
    """PostgreSQL answered; calling it unreachable sends people to look in the wrong place."""
    chosen = random.Random(1)
    email = "".join(chr(0x4E00 + chosen.randrange(20_000)) for _ in range(2_000))
    with pytest.raises((DBAPIError, PromptStackError)) as caught, ledger.transaction() as unit:
        add_users(unit, email)
    assert not isinstance(caught.value, LedgerUnavailable)


# Migrations


def migrated(url: str, *steps: Callable[[Config], None]) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        config = Config()
        folder = str(Path(ledger_migrations.__file__).parent)
        config.set_main_option("script_location", folder.replace("%", "%%"))
        config.attributes["connection"] = connection
        for step in steps:
            step(config)
    engine.dispose()


def schema(engine: Engine) -> dict[str, Any]:
    seen = inspect(engine)
    return {
        table: (
            [(column["name"], str(column["type"])) for column in seen.get_columns(table)],
            sorted(str(index["name"]) for index in seen.get_indexes(table)),
            sorted(str(check["name"]) for check in seen.get_check_constraints(table)),
        )
        for table in seen.get_table_names()
        if table != "alembic_version"
    }


def test_the_models_are_what_the_migrations_make(ledger: Ledger) -> None:
    assert TABLES["vector"].metadata is Base.metadata
    with ledger.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    assert not pending(ledger.engine)


def test_a_downgrade_leaves_nothing_and_an_upgrade_brings_all_back(
    stack: PromptStack, ledger: Ledger
) -> None:
    before = schema(ledger.engine)
    with ledger.transaction() as unit:
        unit.embeddings.register_model("local", "some", 3)
        add_job(unit)
    ledger.engine.dispose()
    migrated(stack.database_url, lambda config: command.downgrade(config, "base"))
    assert schema(ledger.engine) == {}
    assert pending(ledger.engine)
    head = ScriptDirectory(str(Path(ledger_migrations.__file__).parent)).get_current_head()
    assert upgrade(ledger.engine) == (None, head)
    assert schema(ledger.engine) == before
    assert upgrade(ledger.engine) == (head, head)


def test_a_migration_does_not_wait_long_for_a_table_that_is_held(
    stack: PromptStack, ledger: Ledger
) -> None:
    """All who use the table would wait behind it."""
    migrated(stack.database_url, lambda config: command.downgrade(config, "0010"))
    engine = create_engine(stack.database_url)
    with engine.connect() as dump:
        dump.execute(text("LOCK TABLE jobs IN ACCESS SHARE MODE"))
        with pytest.raises(LedgerConflict):
            upgrade(ledger.engine)
        dump.rollback()
    engine.dispose()
    upgrade(ledger.engine)
    assert not pending(ledger.engine)


def test_the_rights_of_old_keys_become_roles_and_scopes(stack: PromptStack, ledger: Ledger) -> None:
    migrated(stack.database_url, lambda config: command.downgrade(config, "0017"))
    with ledger.engine.begin() as connection:
        for email, is_admin in (("Operator@localhost", False), ("ada@example.org", True)):
            connection.execute(text(OLD_KEY), {"email": email, "is_admin": is_admin})
    upgrade(ledger.engine)
    with ledger.transaction() as unit:
        operator, ada = sorted(unit.users.get_many(), key=lambda user: -len(user.email))
        assert (operator.role, ada.role) == ("super_admin", "admin")
        [plain] = unit.api_keys.get_all(operator.id)
        [admin] = unit.api_keys.get_all(ada.id)
        assert set(admin.scopes) - set(plain.scopes) == {"admin"}
        later = {Scope.WEBHOOKS_READ, Scope.WEBHOOKS_WRITE}
        assert set(admin.scopes) == set(Scope) - later, "a key gets no right that it was not given"


def test_a_downgrade_opens_no_door_again(stack: PromptStack, ledger: Ledger) -> None:
    emails = ("demoted", "expired", "disabled", "admin")
    with ledger.transaction() as unit:
        for email in emails:
            role = "user" if email == "demoted" else "admin"
            user = unit.users.create(email=email, role=role)
            unit.api_keys.create(user_id=user.id, name="x", key_hash=email, scopes=list(Scope))
            unit.users.set_disabled(user.id, disabled=email == "disabled")
        unit.session.execute(
            text("UPDATE api_keys SET expires_at = now() WHERE key_hash = 'expired'")
        )
    migrated(stack.database_url, lambda config: command.downgrade(config, "0017"))
    with ledger.engine.begin() as connection:
        opens = connection.execute(
            text("SELECT key_hash, is_admin FROM api_keys WHERE revoked_at IS NULL")
        )
        assert {row.key_hash: row.is_admin for row in opens} == {"demoted": False, "admin": True}
    upgrade(ledger.engine)


OLD_KEY = """
WITH added AS (INSERT INTO users (id, email) VALUES (gen_random_uuid(), :email) RETURNING id)
INSERT INTO api_keys (id, user_id, name, key_hash, is_admin)
SELECT gen_random_uuid(), id, 'x', :email, :is_admin FROM added
"""

JOB_OF_0008 = """
INSERT INTO jobs (id, kind, provider, model, request, request_hash, max_retries, expires_at)
VALUES (gen_random_uuid(), 'generation', 'demo', 'demo-1', '{}', '', 0, now())
"""
"""What a process of that version writes, which knows no later columns."""
ATTEMPT = """
INSERT INTO attempts (worker_id, number, call, provider, model, items)
VALUES (gen_random_uuid(), 1, 0, 'demo', 'demo-1', 1)
"""


def test_an_index_of_a_large_table_is_built_while_it_is_written_to(
    stack: PromptStack, ledger: Ledger
) -> None:
    migrated(stack.database_url, lambda config: command.downgrade(config, "0008"))
    with ledger.transaction() as unit:
        # As a build leaves it that was broken off.
        unit.session.execute(
            text(
                "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'answers_used'::regclass"
            )
        )
    engine = create_engine(stack.database_url)
    waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with ThreadPoolExecutor(1) as other, engine.connect() as writer:
        writer.execute(text("LOCK TABLE jobs IN ROW EXCLUSIVE MODE"))
        migrating = other.submit(upgrade, ledger.engine)
        wait_until(lambda: writer.scalar(waits), "the migration to wait for the writer")
        with ledger.transaction() as unit:
            unit.session.execute(text("SET LOCAL lock_timeout = '2s'"))
            unit.session.execute(text(JOB_OF_0008))
        writer.rollback()
        migrating.result(30.0)
    engine.dispose()
    assert not pending(ledger.engine)
    with ledger.transaction() as unit:
        assert unit.session.scalar(text("SELECT bool_and(indisvalid) FROM pg_index"))


@pytest.mark.parametrize(
    ("step", "table", "write"), [("0025", "jobs", JOB_OF_0008), ("0028", "attempts", ATTEMPT)]
)
def test_large_tables_are_read_and_written_while_indexes_are_built(
    stack: PromptStack, ledger: Ledger, step: str, table: str, write: str
) -> None:
    """By the steps of this schema that index what is written all the time."""
    migrated(stack.database_url, lambda config: command.downgrade(config, step))
    engine = create_engine(stack.database_url)
    waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with ThreadPoolExecutor(1) as other, engine.connect() as writer:
        writer.execute(text(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE"))
        migrating = other.submit(upgrade, ledger.engine)
        wait_until(lambda: writer.scalar(waits), "the migration to wait for the writer")
        with ledger.transaction() as unit:
            unit.session.execute(text("SET LOCAL lock_timeout = '2s'"))
            unit.session.execute(text(write))
            unit.session.execute(text(f"SELECT count(*) FROM {table}"))
        writer.rollback()
        migrating.result(30.0)
    engine.dispose()
    assert not pending(ledger.engine)
    with ledger.transaction() as unit:
        assert unit.session.scalar(text("SELECT bool_and(indisvalid) FROM pg_index"))


def test_processes_that_migrate_at_once_do_it_once(empty_database: str) -> None:
    start = threading.Barrier(3, timeout=PATIENCE)

    def migrate() -> tuple[str | None, str | None]:
        engine = create_engine(empty_database)
        start.wait()
        try:
            return upgrade(engine)
        finally:
            engine.dispose()

    with ThreadPoolExecutor(3) as threads:
        done = [future.result(PATIENCE) for future in [threads.submit(migrate) for _ in range(3)]]
    heads = {after for _, after in done}
    assert len(heads) == 1
    assert sorted(str(before) for before, _ in done) == sorted(
        ["None", *map(str, heads), *map(str, heads)]
    )
