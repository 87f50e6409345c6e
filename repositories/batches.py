"""Many rows in one statement: each column travels as one array, which PostgreSQL takes apart."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from promptstack.repositories.arrays import array_literal


class BatchStatement:
    """A statement over the table `given`: the rows that it is run on."""

    def __init__(self, columns: str, sql: str) -> None:
        """`columns` are those of `given`, each with its type, such as "id uuid, number integer"."""
        typed = [column.split() for column in columns.split(",")]
        self._names = [name for name, _ in typed]
        arrays = ", ".join(f"CAST(:given_{name} AS {kind}[])" for name, kind in typed)
        rows = f"unnest({arrays}) AS t({', '.join(self._names)})"
        self._statement = text(f"WITH given AS (SELECT * FROM {rows}){sql}")  # noqa: S608 - ours

    def run(
        self, session: Session, rows: Sequence[Mapping[str, Any]], **values: Any
    ) -> Sequence[Row[Any]]:
        """Run it on all rows at once; what it returns. What a row leaves out is NULL."""
        arrays = {
            f"given_{name}": array_literal([row.get(name) for row in rows]) for name in self._names
        }
        return session.execute(self._statement, {**arrays, **values}).all()
