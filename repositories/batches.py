"""Many rows in one statement: they travel as one JSON document, which PostgreSQL takes apart."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, TextClause, text
from sqlalchemy.orm import Session

from promptstack.repositories.jsonb import dump_jsonb


def batch_statement(columns: str, sql: str) -> TextClause:
    """A statement over the table `given`: the rows that `run_batch` sends, with these columns.

    The LIMIT tells the planner how many there are: it would plan for a hundred, and read whole
    tables for one.
    """
    rows = f"jsonb_to_recordset(CAST(:rows AS jsonb)) AS t({columns})"
    return text(f"WITH given AS (SELECT * FROM {rows} LIMIT :count){sql}")  # noqa: S608 - ours


def run_batch(
    session: Session, statement: TextClause, rows: Sequence[Mapping[str, Any]], **values: Any
) -> Sequence[Row[Any]]:
    """Run a statement on all rows at once; what it returns."""
    document = dump_jsonb(rows, _as_text)
    return session.execute(statement, {"rows": document, "count": len(rows), **values}).all()


def _as_text(value: object) -> str:
    """UUIDs, times and decimals, as PostgreSQL reads them."""
    return value.isoformat() if isinstance(value, datetime) else str(value)
