"""Migrations by an ordinary role: what it lacks is said in one line, what it may do is done."""

import itertools
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import create_engine, make_url, text
from typer.testing import CliRunner, Result

from promptstack.api.cli.main import build
from promptstack.config.settings import get_settings
from promptstack.embedded.servers import ServerUrls

_numbers = itertools.count()
ROLE = "an_ordinary_role"


def run_sql(url: str, *statements: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


@pytest.fixture
def database(servers: ServerUrls) -> Iterator[str]:
    """An empty database, as its superuser reaches it; an ordinary role may connect."""
    name = f"rights_{next(_numbers)}"
    url = make_url(servers.database_url).set(database=name)
    run_sql(servers.database_url, f"CREATE ROLE {ROLE} LOGIN", f"CREATE DATABASE {name}")
    yield url.render_as_string(hide_password=False)
    drop = (f"DROP DATABASE {name} WITH (FORCE)", f"DROP ROLE {ROLE}")
    run_sql(servers.database_url, *drop)


@pytest.fixture
def migrate(
    database: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Result]:
    assert environment
    url = make_url(database).set(username=ROLE)
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    get_settings.cache_clear()
    return lambda: CliRunner().invoke(build(), ["migrate"])


def refused(result: Result) -> str:
    assert (result.exit_code, result.stdout) == (2, ""), result
    (line,) = result.stderr.splitlines()
    return line


def test_what_a_superuser_has_to_run_is_said(database: str, migrate: Callable[[], Result]) -> None:
    name = make_url(database).database
    extension, grant = "CREATE EXTENSION vector;", f"GRANT CREATE ON SCHEMA public TO {ROLE};"
    said = refused(migrate())
    assert f"The role {ROLE} may not create the extension vector or create tables in" in said
    assert f"A superuser has to run, in the database {name}: {extension} {grant} CREATE S" in said

    run_sql(database, extension)
    said = refused(migrate())
    assert f"A superuser has to run, in the database {name}: {grant} CREATE SCHEMA" in said
    assert "extension" not in said

    run_sql(database, grant)
    said = refused(migrate())
    schema = f"CREATE SCHEMA promptstack AUTHORIZATION {ROLE};"
    assert "may not create the schema promptstack. A superuser has to run, in the data" in said
    assert f"{name}: {schema} Then" in said

    # With what was said done, it goes on, and finds the extension and the schema there.
    run_sql(database, schema)
    done = migrate()
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("Migrated ")


def test_tables_of_another_role_are_left_to_it(
    database: str, migrate: Callable[[], Result]
) -> None:
    run_sql(
        database,
        "CREATE EXTENSION vector",
        "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)",
        f"GRANT CREATE ON SCHEMA public TO {ROLE}",
    )
    said = refused(migrate())
    assert "permission denied for table alembic_version" in said
    assert "as the role that owns the tables" in said
