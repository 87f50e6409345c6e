"""What a database's role must be allowed to do before the schema can be made."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from promptstack.repositories.driver_errors import explained
from promptstack.repositories.errors import RightsMissing

FUNCTIONS = "promptstack"
"""The schema of the functions that enqueue."""
_MAY_HAVE_SCHEMA = text(f"""
    SELECT to_regnamespace('{FUNCTIONS}') IS NOT NULL
        OR has_database_privilege(current_database(), 'CREATE')
""")
NOT_ALLOWED = "42501"
NOT_INSTALLED = frozenset({"58P01", "0A000"})
"""PostgreSQL's codes for an extension whose files the server doesn't have."""


def prepare_database(connection: Connection) -> None:
    """Make the extension `vector` where it is missing, and look whether tables may be made.

    Tried, not foreseen: at some hosts a role that is no superuser may make extensions. Raises
    `RightsMissing`, which names all that a superuser has to run.
    """
    role, database, schema = connection.execute(
        text("SELECT current_user, current_database(), current_schema()")
    ).one()
    quote = connection.dialect.identifier_preparer.quote
    lacks = {}
    if not _makes_extension(connection):
        lacks["create the extension vector"] = "CREATE EXTENSION vector;"
    may = text("SELECT has_schema_privilege(current_schema(), 'CREATE')")
    if schema is not None and not connection.scalar(may):
        what = f"create tables in the schema {schema}"
        lacks[what] = f"GRANT CREATE ON SCHEMA {quote(schema)} TO {quote(role)};"
    if not connection.scalar(_MAY_HAVE_SCHEMA):
        what = f"create the schema {FUNCTIONS}"
        lacks[what] = f"CREATE SCHEMA {FUNCTIONS} AUTHORIZATION {quote(role)};"
    connection.rollback()
    if lacks:
        raise RightsMissing(
            f"The role {role} may not {' or '.join(lacks)}. A superuser has to run, in the "
            f"database {database}: {' '.join(lacks.values())} Then run `promptstack migrate` again."
        )


def _makes_extension(connection: Connection) -> bool:
    """Make the extension unless it is there; False where the role may not."""
    try:
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
        connection.commit()
    except DBAPIError as error:
        connection.rollback()
        code = _code(error)
        if code in NOT_INSTALLED:
            raise RightsMissing(
                "The PostgreSQL server doesn't have the extension vector. Install pgvector 0.8 or "
                "newer there (github.com/pgvector/pgvector), then run `promptstack migrate` again."
            ) from error
        if code != NOT_ALLOWED:
            raise
        return False
    return True


@contextmanager
def rights_explained() -> Iterator[None]:
    """Say plainly what the database is not, or not now, doing for us. Raises `RightsMissing`."""
    try:
        with explained():
            yield
    except DBAPIError as error:
        if _code(error) != NOT_ALLOWED:
            raise
        said = str(error.orig).splitlines()[0]
        raise RightsMissing(
            f"The database refuses this role a step: {said}. Run `promptstack migrate` as the "
            "role that owns the tables."
        ) from error


def _code(error: DBAPIError) -> str | None:
    return getattr(error.orig, "pgcode", None)
