"""One statement with a limit on how long it may take, in one exchange with PostgreSQL."""

from typing import Any

from sqlalchemy.pool import PoolProxiedConnection

SECONDS = 10.0


def limited(
    connection: PoolProxiedConnection, seconds: float, query: str, given: dict[str, Any]
) -> list[tuple[Any, ...]]:
    """Run it; the rows. PostgreSQL ends it after so many seconds.

    What comes in one exchange is one transaction, so the limit is gone with it.
    """
    cursor: Any = connection.cursor()
    with cursor:
        limit = f"SET LOCAL statement_timeout = {int(seconds * 1000)}"
        cursor.execute(f"{limit}; {query}", given)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows
