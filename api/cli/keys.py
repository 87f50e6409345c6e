"""`promptstack keys ...`: keys to the HTTP API."""

from dataclasses import asdict
from typing import Annotated

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.table import Column, print_table
from promptstack.api.cli.terminal import ID_HELP, JsonFlag, err, out, print_items, print_json
from promptstack.repositories.access_models import Scope
from promptstack.services.access.keys import OPERATOR, USUAL_SCOPES, KeyView

COLUMNS = (
    Column("id"),
    Column("user", rank=1, elastic=True),
    Column("name", rank=2, elastic=True),
    Column("admin", rank=4),
    Column("created", rank=5),
    Column("revoked", rank=3),
)


def create(
    email: Annotated[str, typer.Option(help="Whose key it is.")] = OPERATOR,
    name: Annotated[str, typer.Option(help="What it is for.")] = "command line",
    admin: Annotated[
        bool, typer.Option("--admin", help="May do what its user's role allows.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a key and show it, this once."""
    with connected(start_servers=True) as stack:
        scopes = [*USUAL_SCOPES, Scope.ADMIN] if admin else USUAL_SCOPES
        key = stack.keys.create(email, name, scopes=scopes)
    if as_json:
        print_json({"key": key, "email": email, "name": name, "admin": admin})
        return
    err.print(f"Key of {email}; it is not shown again. Send it as Authorization: Bearer KEY.")
    out.print(key, markup=False)


def list_(as_json: JsonFlag = False) -> None:
    """List keys, oldest first; the keys themselves are not kept."""
    with connected(start_servers=True) as stack:
        keys = stack.keys.get_all()
    if as_json:
        print_items(map(asdict, keys))
    elif keys:
        print_table(COLUMNS, list(map(_row, keys)))
    else:
        out.print("No keys.")


def _row(key: KeyView) -> list[str]:
    revoked = f"{key.revoked_at:%Y-%m-%d}" if key.revoked_at else ""
    admin = "yes" if Scope.ADMIN in key.scopes else ""
    return [str(key.id), key.email, key.name, admin, f"{key.created_at:%Y-%m-%d}", revoked]


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help=f"Id of the key; {ID_HELP}.")],
    as_json: JsonFlag = False,
) -> None:
    """Let a key open nothing from now on."""
    with connected(start_servers=True) as stack:
        found = stack.keys.find(key_id)
        stack.keys.revoke(found)
    if as_json:
        print_json({"id": found, "revoked": True})
    else:
        out.print(f"Key {found} is revoked.")
