"""`promptstack permissions`: who may do what."""

from dataclasses import asdict

from promptstack.api.cli.table import Column, print_table
from promptstack.api.cli.terminal import JsonFlag, print_items
from promptstack.api.permissions import PERMISSIONS, Permission

COLUMNS = (
    Column("action"),
    Column("role"),
    Column("scope of a key"),
    Column("whose", rank=1),
    Column("routes", rank=2, elastic=True),
    Column("commands", rank=3, elastic=True),
)


def permissions(as_json: JsonFlag = False) -> None:
    """Show who may do what: roles, scopes, routes and commands."""
    if as_json:
        print_items(map(asdict, PERMISSIONS))
    else:
        print_table(COLUMNS, list(map(_row, PERMISSIONS)))


def _row(permission: Permission) -> list[str]:
    return [
        permission.action,
        permission.who,
        permission.scope_of_key,
        permission.whose,
        ", ".join(permission.routes),
        ", ".join(permission.commands),
    ]
