"""How long PostgreSQL waits for us: a transaction that stays idle for too long is ended.

A process that freezes in the middle of a transaction would else keep its locks, and everybody who
wants them waiting.
"""

import math
import time
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from promptstack.repositories.errors import LedgerSlow

IDLE_SECONDS = 5
IDLE_LIMIT = "idle_in_transaction_session_timeout"
TOO_IDLE = (
    f"This process did nothing for {IDLE_SECONDS} s in the middle of a transaction, so the "
    "database ended it: the machine is too busy, or the step is too large. Try again."
)
_SENT, _ANSWERED = "promptstack.sent", "promptstack.answered"
"""When a connection's last statement or commit was sent, and when a statement was answered."""
_POOLED = "promptstack.pooled"


def limit_idleness(engine: Engine) -> None:
    """Limit how long the transactions of an engine may be idle, and say so where one was."""
    event.listen(engine, "connect", _limit_session)
    event.listen(engine, "begin", _limit_transaction)
    event.listen(engine, "begin", _note_answered)
    event.listen(engine, "before_cursor_execute", _note_sent)
    event.listen(engine, "commit", _note_sent)
    event.listen(engine, "after_cursor_execute", _note_answered)
    event.listen(engine, "handle_error", _explain_idleness)


def is_pooled(connection: Connection | PoolProxiedConnection) -> bool:
    """Whether a pooler such as PgBouncer is in between, so that no session belongs to anybody.

    Neither a setting nor a lock may be given to such a session: it would stay with whoever comes
    next, and the next statement may run in another session.
    """
    return bool(connection.info.get(_POOLED))


def _limit_session(connection: Any, record: ConnectionPoolEntry) -> None:
    with connection.cursor() as cursor:
        # A pooler answers the connection itself, so another process runs the statement.
        cursor.execute(
            f"SELECT set_config('{IDLE_LIMIT}', '{IDLE_SECONDS}s', false) "
            f"WHERE pg_backend_pid() = {connection.info.backend_pid}"
        )
        record.info[_POOLED] = cursor.fetchone() is None
    connection.commit()


def _limit_transaction(connection: Connection) -> None:
    if is_pooled(connection):
        connection.exec_driver_sql(f"SET LOCAL {IDLE_LIMIT} = '{IDLE_SECONDS}s'")


def _note_sent(connection: Connection, *_: object) -> None:
    connection.info[_SENT] = time.monotonic()


def _note_answered(connection: Connection, *_: object) -> None:
    connection.info[_ANSWERED] = time.monotonic()


def _explain_idleness(context: ExceptionContext) -> None:
    """Tell a connection that broke from one that PostgreSQL closed because it was idle.

    PostgreSQL says so when it closes, and nobody reads that any more: the next statement only
    finds the connection gone.
    """
    if not context.is_disconnect or context.connection is None:
        return
    info = context.connection.info
    answered, sent = info.get(_ANSWERED, math.inf), info.get(_SENT, -math.inf)
    idle = (sent if sent > answered else time.monotonic()) - answered
    if idle >= IDLE_SECONDS:
        raise LedgerSlow(TOO_IDLE) from context.original_exception
