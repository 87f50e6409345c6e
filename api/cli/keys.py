"""`promptstack keys ...`: keys to the HTTP API."""

from typing import Annotated

import typer

from api.cli.connection import connected
from api.cli.terminal import JsonFlag, err, out, print_json

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
