"""Arrays as one literal, such as '{1,2,3}'.

PostgreSQL, and the driver before it, read thousands of elements far faster in one literal than as
expressions of their own.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ARRAY, BindParameter, ColumnElement, Text, cast
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine


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
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return f'"{value}"'
