"""Notifications of PostgreSQL: what LISTEN hears of NOTIFY."""

import select
from typing import Any

from sqlalchemy.pool import PoolProxiedConnection

from promptstack.repositories.timeouts import is_pooled


class Listener:
    """Hears the notifications of one channel, on a connection that nobody else uses."""

    def __init__(self, connection: PoolProxiedConnection, channel: str) -> None:
        self.is_deaf = is_pooled(connection)
        """Whether a pooler such as PgBouncer is in between: it passes no notifications on."""
        driver: Any = connection.dbapi_connection
        driver.autocommit = True
        self._driver = driver
        if not self.is_deaf:
            self._run(f"LISTEN {channel}")

    def wait(self, seconds: float) -> bool:
        """Wait for a notification; whether there was one. Raises the driver's error of a break."""
        poll = select.poll()  # as `select` takes no connection after the first thousand files
        poll.register(self._driver, select.POLLIN)
        if poll.poll(seconds * 1_000):
            self._driver.poll()
        heard = bool(self._driver.notifies)
        self._driver.notifies.clear()
        return heard

    def ping(self) -> None:
        """Ask whether the connection lives. Raises the same."""
        self._run("SELECT 1")

    def _run(self, statement: str) -> None:
        with self._driver.cursor() as cursor:
            cursor.execute(statement)
