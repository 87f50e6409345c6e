"""`promptstack keys ...`: keys to the HTTP API."""

from dataclasses import asdict
from typing import Annotated
from uuid import UUID

import typer
from rich.table import Table

from api.cli.connection import connected
from api.cli.terminal import UUID_CHARACTERS, JsonFlag, err, out, print_json, printable

app = typer.Typer(help="Keys to the HTTP API.", no_args_is_help=True)


@app.command()
def create(
    email: Annotated[str, typer.Option(help="Whose key it is.")] = "operator@localhost",
    name: Annotated[str, typer.Option(help="What it is for.")] = "command line",
    admin: Annotated[bool, typer.Option("--admin", help="May see everybody's jobs.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a key and show it, this once."""
    with connected(start_servers=True) as stack:
        key = stack.keys.create(email, name, is_admin=admin)
    if as_json:
        print_json({"key": key, "email": email, "name": name, "admin": admin})
        return
    err.print(f"Key of {email}; it is not shown again. Send it as Authorization: Bearer KEY.")
    out.print(key, markup=False)


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """List keys, oldest first; the keys themselves are not kept."""
    with connected(start_servers=True) as stack:
        keys = stack.keys.get_all()
    if as_json:
        print_json([asdict(key) for key in keys])
        return
    table = Table(box=None)
    table.add_column("id", no_wrap=True, min_width=UUID_CHARACTERS)
    for name in ("user", "name", "admin", "created", "revoked"):
        table.add_column(name)
    for key in keys:
        revoked = f"{key.revoked_at:%Y-%m-%d}" if key.revoked_at else ""
        created = f"{key.created_at:%Y-%m-%d}"
        admin = "yes" if key.is_admin else ""
        names = printable(key.email), printable(key.name)
        table.add_row(str(key.id), *names, admin, created, revoked)
    out.print(table if keys else "No keys.")


@app.command()
def revoke(key_id: UUID) -> None:
    """Let a key open nothing from now on."""
    with connected(start_servers=True) as stack:
        stack.keys.revoke(key_id)
    out.print(f"Key {key_id} is revoked.")
