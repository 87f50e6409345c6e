"""What the errors of the database's driver mean. Nothing else translates them."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from psycopg2.errors import ForeignKeyViolation
from sqlalchemy.exc import DBAPIError, ResourceClosedError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from promptstack.config.errors import PromptStackError
from promptstack.repositories.errors import (
    LedgerConflict,
    LedgerCrowded,
    LedgerOutdated,
    LedgerReadOnly,
    LedgerSlow,
    LedgerUnavailable,
    UnknownUser,
)
from promptstack.repositories.timeouts import TOO_IDLE

# PostgreSQL's codes.
CONFLICTS = frozenset({"40001", "40P01", "55P03"})
"""A serialization failure, a deadlock, a lock that isn't free."""
SLOW = {
    "25P03": TOO_IDLE,
    "57014": "A statement took longer than it may, so the database ended it: it is too busy, or "
    "somebody else holds what the statement needs. Try again.",
}
"""A transaction that was idle for too long, and a statement that was cancelled. Neither is an
outage: an operator would look in the wrong place, and wait for its end."""
OUTDATED_SCHEMA = frozenset({"42P01", "42703"})
"""A table or a column that doesn't exist."""
NO_WRITES = frozenset({"25006", "53100"})
"""A standby, a full disk."""
OUTAGES = ("08", "53", "57", "58")
"""Begins of codes: a lost connection, too many connections, a shutdown, an error of the machine."""


@contextmanager
def explained() -> Iterator[None]:
    """Translate the driver's errors. Raises what `Ledger.transaction` raises."""
    try:
        yield
    except (DBAPIError, psycopg2.Error) as error:
        known = _explain(error)
        if known is None:
            raise
        raise known from error
    except ResourceClosedError as error:
        # SQLAlchemy raises it when a connection breaks while it asks for the server's version.
        raise LedgerUnavailable(
            "The connection to the database broke as it was opened; check that PostgreSQL runs."
        ) from error
    except PoolTimeoutError as error:
        raise LedgerCrowded(
            "All connections to the database are in use; raise DATABASE_POOL_SIZE."
        ) from error


@contextmanager
def of_known_users() -> Iterator[None]:
    """Raise `UnknownUser` where a row that is added belongs to a user who is not there."""
    try:
        yield
    except ForeignKeyViolation as error:
        raise UnknownUser("The user whose it is to be is not there.") from error


def _explain(error: DBAPIError | psycopg2.Error) -> PromptStackError | None:
    """Tell an outage and a conflict from what PostgreSQL refuses for good.

    COPY goes past SQLAlchemy, so that its errors come as the driver's own.
    """
    cause = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(cause, "pgcode", None)
    if code in CONFLICTS:
        return LedgerConflict("Two changes of the same rows met in the database; try again.")
    if code in SLOW:
        return LedgerSlow(SLOW[code], detail=str(cause))
    if code in OUTDATED_SCHEMA:
        return LedgerOutdated(
            "The database's schema is missing or older than this version; "
            "run `promptstack migrate`."
        )
    if code in NO_WRITES:
        return LedgerReadOnly(
            "The database takes no writes now: its disk is full, or it is a standby.",
            detail=str(cause),
        )
    if str(code).startswith(OUTAGES) or (code is None and _is_broken(error, cause)):
        return LedgerUnavailable(
            "The database could not be reached or broke the connection; "
            "check DATABASE_URL and that PostgreSQL runs.",
            detail=str(cause),
        )
    return None


def _is_broken(error: Exception, cause: BaseException | None) -> bool:
    """Whether a connection broke, of which PostgreSQL could not tell."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    # The driver reports a connection that was cut within COPY as the bare DatabaseError.
    return isinstance(cause, psycopg2.OperationalError | psycopg2.InterfaceError) or (
        type(cause) is psycopg2.DatabaseError
    )
