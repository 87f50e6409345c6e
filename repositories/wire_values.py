"""JSON as PostgreSQL's jsonb gives it back with the same numbers.

jsonb holds a number as its decimal digits: `6e23` comes back as an integer of 24 digits, which no
64 bits hold. Written with `.0`, it comes back as the float that it was.
"""

import io
import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import chain
from typing import Any

import orjson
from sqlalchemy import ARRAY, BindParameter, ColumnElement, Row, Text, TextClause, cast, text
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeDecorator, TypeEngine

_MAY_HAVE = re.compile(rb"[0-9][eE]\+?[0-9]")
_MAY_HAVE_TEXT = re.compile(_MAY_HAVE.pattern.decode(), re.ASCII)
_QUOTED = re.compile(r'["\\]')
_TEXT_OR_LARGE = re.compile(
    rb'"(?:[^"\\]++|\\.)*+"|-?[0-9]++(?:\.[0-9]++)?+[eE]\+?[0-9]++', re.DOTALL
)


def for_jsonb(written: bytes) -> bytes:
    """Return JSON with its large floats as digits with a fraction."""
    if _MAY_HAVE.search(written) is None:
        return written
    return _TEXT_OR_LARGE.sub(_as_digits, written)


def dump_jsonb(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """Return a value as JSON for jsonb; `default` makes JSON of what else is in it."""
    return written_for_jsonb(json.dumps(value, default=default))


def written_for_jsonb(written: str) -> str:
    """Do `for_jsonb` with text."""
    if _MAY_HAVE_TEXT.search(written) is None:
        return written
    return for_jsonb(written.encode()).decode()


def _as_digits(found: re.Match[bytes]) -> bytes:
    text = found.group()
    if text.startswith(b'"'):
        return text
    digits = f"{Decimal(text.decode()):f}"
    return (digits if "." in digits else f"{digits}.0").encode()


_LARGEST = 2.0**63
"""From here on, a float of orjson may have been an integer, which it rounds."""


def load_jsonb(written: bytes) -> Any:
    """Read what jsonb gives: the values of `json.loads` in a third of its time."""
    value = orjson.loads(written)
    return json.loads(written) if _may_be_rounded(value) else value


def _may_be_rounded(value: Any) -> bool:
    level = [value]
    while level:
        below: list[Any] = []
        for part in level:
            kind = type(part)
            if kind is dict:
                below += part.values()
            elif kind is list:
                below += part
            elif kind is float and not -_LARGEST < part < _LARGEST:
                return True
        level = below
    return False


class ArrayLiteral(TypeDecorator[Sequence[Any]]):
    """Of a parameter: a list of `kind`, sent as one text. It is for parameters only."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: TypeEngine[Any]) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: Sequence[Any] | None, dialect: Dialect) -> str | None:
        return None if value is None else array_literal(value)

    def bind_expression(self, bindparam: BindParameter[Any]) -> ColumnElement[Any]:
        """Say what the text is."""
        return cast(bindparam, ARRAY(self.kind))


def array_literal(values: Sequence[Any]) -> str:
    """A list as PostgreSQL's array_in reads it (its manual, Arrays, I/O Syntax)."""
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: object) -> str:
    if type(value) is str:  # first, as most are
        return f'"{value}"' if _QUOTED.search(value) is None else _escaped(value)
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    if isinstance(value, str):
        return _escaped(value)
    return f'"{value}"'


def _escaped(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


Rows = Sequence[Mapping[str, Any]]


class BatchStatement:
    """A statement over the table `given`: the rows that it is run on."""

    def __init__(self, columns: str, sql: str) -> None:
        """`columns` are those of `given`, each with its type, such as "id uuid, number integer"."""
        self._columns = [column.split() for column in columns.split(",")]
        self._sql = sql
        self._alone = Exchange(self)

    def run(
        self, session: Session, rows: Rows, *, lock_seconds: float = 0.0, **values: Any
    ) -> Sequence[Row[Any]]:
        """Run it on all rows at once; what it returns. What a row leaves out is NULL.

        With `lock_seconds`, neither it nor what follows in its transaction waits longer for a lock.
        """
        return self._alone.run(session, rows, lock_seconds=lock_seconds, **values)

    def sql_of(self, name: str) -> str:
        """Its text, with parameters that begin with `name`."""
        arrays = ", ".join(f"CAST(:{name}_{column} AS {kind}[])" for column, kind in self._columns)
        rows = f"unnest({arrays}) AS t({', '.join(column for column, _ in self._columns)})"
        return f"WITH given AS (SELECT * FROM {rows}){self._sql}"  # noqa: S608 - ours

    def arrays(self, name: str, rows: Rows) -> dict[str, str]:
        """The parameters for these rows."""
        return {
            f"{name}_{column}": array_literal([row.get(column) for row in rows])
            for column, _ in self._columns
        }


class Exchange:
    """Statements that go to PostgreSQL together. They return what the last one does."""

    def __init__(self, *statements: BatchStatement) -> None:
        self._parts = {f"given{number}": one for number, one in enumerate(statements)}
        self._texts: dict[float, TextClause] = {}

    def run(
        self, session: Session, *rows: Rows, lock_seconds: float = 0.0, **values: Any
    ) -> Sequence[Row[Any]]:
        """Run each on its rows, with a limit on waits for locks where one is given."""
        for (name, one), given in zip(self._parts.items(), rows, strict=True):
            values |= one.arrays(name, given)
        return session.execute(self._text(lock_seconds), values).all()

    def _text(self, lock_seconds: float) -> TextClause:
        """Built once, which costs more than to run it."""
        if lock_seconds not in self._texts:
            limit = [f"SET LOCAL lock_timeout = {int(lock_seconds * 1000)}"] if lock_seconds else []
            sql = [one.sql_of(name) for name, one in self._parts.items()]
            self._texts[lock_seconds] = text(";\n".join(limit + sql))
        return self._texts[lock_seconds]


_IN_COPY = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
_NULL = r"\N"


def copy_line(values: Sequence[object]) -> str:
    """A row as COPY reads it in its text format (PostgreSQL manual, COPY)."""
    fields = [
        value if type(value) is str else _NULL if value is None else str(value) for value in values
    ]
    line = "\t".join(fields)
    # Most need no escapes. One look at the whole line takes less than one at each field.
    if (
        line.count("\t") == len(fields) - 1
        and line.count("\\") == values.count(None)
        and "\n" not in line
        and "\r" not in line
    ):
        return f"{line}\n"
    escaped = [
        _NULL if value is None else field.translate(_IN_COPY)
        for value, field in zip(values, fields, strict=True)
    ]
    return "\t".join(escaped) + "\n"


HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
"""Its signature, no flags, no extension (PostgreSQL manual, COPY)."""
END = b"\xff\xff"
SENT_AT_ONCE = 1 << 20
"""Bytes. The driver's 8 KiB cost a call of Python for each."""


def copy_binary(cursor: Any, target: str, rows: Iterable[bytes | memoryview]) -> None:
    """Add rows, laid out as COPY BINARY reads them, to `target`: a table with its columns.

    The parts of `rows` are taken one by one, so that there need be only one of them at a time.
    """
    stream = _Stream(rows)
    try:
        cursor.copy_expert(f"COPY {target} FROM STDIN (FORMAT binary)", stream, size=SENT_AT_ONCE)
    except Exception as error:
        # The driver says only that it could not read.
        if stream.error is not None:
            raise stream.error from error
        raise


def copied_row(cursor: Any, query: str, values: Mapping[str, Any]) -> list[memoryview | None]:
    """Return the fields of the one row that a query gives, as COPY BINARY lays them out.

    The driver would read bytes as hexadecimal text, and hold Python's lock for each row.
    """
    taken = io.BytesIO()
    statement = cursor.mogrify(f"COPY ({query}) TO STDOUT (FORMAT binary)", values)
    cursor.copy_expert(statement, taken, size=SENT_AT_ONCE)
    row = taken.getbuffer()[len(HEADER) :]
    (count,), at = struct.unpack_from(">h", row), 2
    fields: list[memoryview | None] = []
    for _ in range(count):
        (length,), at = struct.unpack_from(">i", row, at), at + 4
        fields.append(None if length < 0 else row[at : at + length])
        at += max(0, length)
    return fields


class _Stream:
    """A file of header, rows and end."""

    def __init__(self, rows: Iterable[bytes | memoryview]) -> None:
        self.error: Exception | None = None
        self._parts = chain((HEADER,), rows, (END,))
        self._part = memoryview(b"")

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; none at the end."""
        while not self._part:
            try:
                part = next(self._parts, None)
            except Exception as error:
                self.error = error
                raise
            if part is None:
                return b""
            self._part = memoryview(part)
        taken, self._part = bytes(self._part[:size]), self._part[size:]
        return taken


def read_request(request: str) -> dict[str, Any] | None:
    """Read a request; None where jsonb holds what Python refuses: endless digits or nesting."""
    try:
        read: dict[str, Any] = json.loads(request)
    except (ValueError, RecursionError):
        return None
    return read
