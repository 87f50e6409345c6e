"""COPY BINARY: the quickest way into PostgreSQL, for items by the million and vectors."""

import io
from typing import Any

HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
"""Its signature, no flags, no extension (PostgreSQL manual, COPY)."""
END = b"\xff\xff"


def copy_binary(cursor: Any, target: str, rows: bytes) -> None:
    """Add rows, laid out as COPY BINARY reads them, to `target`: a table with its columns."""
    cursor.copy_expert(f"COPY {target} FROM STDIN (FORMAT binary)", io.BytesIO(HEADER + rows + END))
