"""Plain SQL as a role of the database: nothing of ours is between it and the functions."""

from typing import Any

import psycopg2

from promptstack.tasks.worker_services import WorkerServices


def connect(stack: WorkerServices, role: str) -> Any:
    url = stack.ledger.engine.url
    return psycopg2.connect(host=url.query["host"], port=5432, dbname=url.database, user=role)


def run(connection: Any, statement: str, *values: Any) -> Any:
    """The first value of what a statement returns."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchone()[0] if cursor.description else None
