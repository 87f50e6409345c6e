"""Connections of the pool are asked whether they live, where they may not.

Asking each time costs an exchange. A connection that was used a moment ago and that has nothing to
say is alive: PostgreSQL says so when it closes one.
"""

import math
import select
import time
from typing import Any

import psycopg2
from sqlalchemy import Engine, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

FRESH_SECONDS = 1.0
"""So long after its last use, a connection may have been cut off without a word."""
_USED = "promptstack.used"


def check_before_use(engine: Engine) -> None:
    """Replace a connection that a restarted PostgreSQL has closed, unseen by who wants one."""

    def check(connection: Any, record: ConnectionPoolEntry, _: object) -> None:
        used = record.info.get(_USED, math.inf)
        if time.monotonic() - used < FRESH_SECONDS and not _has_word(connection):
            return
        try:
            engine.dialect.do_ping(connection)
        except psycopg2.Error as error:
            raise InvalidatePoolError from error  # of all as old as this one

    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "checkout", check)


def _note_use(_: object, record: ConnectionPoolEntry) -> None:
    record.info[_USED] = time.monotonic()


def _has_word(connection: Any) -> bool:
    """Whether the server has sent something, or closed, since its last answer."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
