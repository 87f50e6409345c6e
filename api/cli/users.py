"""`promptstack users ...`: who there is, and what they may do."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.table import Column, print_table
from promptstack.api.cli.terminal import (
    JsonFlag,
    age,
    err,
    out,
    print_fields,
    print_items,
    print_json,
    stop,
)
from promptstack.repositories.access_models import Role, Tier
from promptstack.services.access.users import UserView

COLUMNS = (
    Column("id", rank=4),
    Column("e-mail", elastic=True),
    Column("name", rank=2, elastic=True),
    Column("role"),
    Column("tier", rank=5),
    Column("last seen", rank=3),
    Column("disabled", rank=1),
)
MOST_LISTED = 10_000
MOST_READ = 10_000

Who = Annotated[
    str, typer.Argument(metavar="USER", help="The e-mail, or the first characters of the id.")
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        "--password-file",
        help="A file with the password; - for standard input. Unset: you are asked.",
    ),
]
NoPassword = Annotated[
    bool, typer.Option("--no-password", help="For who signs in by a proxy, or by keys only.")
]


def create(
    email: Annotated[str, typer.Argument(help="Their e-mail.")],
    name: Annotated[str, typer.Option(help="The full name.")] = "",
    role: Annotated[Role, typer.Option(help="What they may do.")] = Role.USER,
    super_admin: Annotated[
        bool, typer.Option("--super-admin", help="The same as --role super_admin.")
    ] = False,
    tier: Annotated[Tier, typer.Option(help="Their subscription.")] = Tier.FREE,
    beta: Annotated[bool, typer.Option("--beta", help="They test what is new.")] = False,
    provider: Annotated[
        str | None, typer.Option(help="Provider of their generations that name none.")
    ] = None,
    password_file: PasswordFile = None,
    no_password: NoPassword = False,
    as_json: JsonFlag = False,
) -> None:
    """Add a user, who can then sign in."""
    password = _password(password_file, no_password=no_password)
    with connected(start_servers=True) as stack:
        user = stack.users.create(
            email,
            password=password,
            role=Role.SUPER_ADMIN if super_admin else role,
            name=name,
            tier=tier,
            is_beta_tester=beta,
            preferred_provider=provider,
        )
    _print(user, as_json=as_json)


def list_(
    query: Annotated[str, typer.Argument(help="A part of the name or the e-mail.")] = "",
    role: Annotated[Role | None, typer.Option(help="Only those with this role.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_LISTED, help="How many.")] = 100,
    as_json: JsonFlag = False,
) -> None:
    """List users, oldest first."""
    with connected(start_servers=True) as stack:
        # One more than is shown tells whether there are more.
        found = stack.users.get_many(query, role=role, limit=limit + 1)
    users, has_more = found[:limit], len(found) > limit
    if as_json:
        print_items((user.model_dump() for user in users), has_more=has_more)
    elif users:
        print_table(COLUMNS, list(map(_row, users)))
        if has_more:
            err.print("There are more: name a part of the name or e-mail, or raise --limit.")
    else:
        out.print("No users.")


def show(user: Who, as_json: JsonFlag = False) -> None:
    """Show a user."""
    with connected(start_servers=True) as stack:
        found = stack.users.get(stack.users.find(user))
    _print(found, as_json=as_json)


def disable(user: Who, as_json: JsonFlag = False) -> None:
    """Sign a user out, and let nobody in as them, by no way."""
    _change(user, as_json=as_json, disabled=True)


def enable(user: Who, as_json: JsonFlag = False) -> None:
    """Let a disabled user in again."""
    _change(user, as_json=as_json, disabled=False)


def set_role(
    user: Who,
    role: Annotated[Role, typer.Argument(help="What they may do from now on.")],
    as_json: JsonFlag = False,
) -> None:
    """Say what a user may do."""
    _change(user, as_json=as_json, role=role)


def reset_password(
    user: Who,
    password_file: PasswordFile = None,
    no_password: NoPassword = False,
    as_json: JsonFlag = False,
) -> None:
    """Give a user another password, and sign them out everywhere."""
    password = _password(password_file, no_password=no_password)
    with connected(start_servers=True) as stack:
        changed = stack.users.reset_password(stack.users.find(user), password)
    _print(changed, as_json=as_json)


def _change(user: str, *, as_json: bool, **fields: Any) -> None:
    with connected(start_servers=True) as stack:
        changed = stack.users.change(stack.users.find(user), **fields)
    _print(changed, as_json=as_json)


def _password(file: Path | None, *, no_password: bool) -> str | None:
    """Ask for a password, or read it. It is never an argument: those are seen by everybody."""
    if no_password and file is not None:
        stop("--no-password and --password-file exclude each other.")
    if no_password:
        return None
    if file is not None:
        return _read(file)
    if not sys.stdin.isatty():
        stop("No password: give --password-file FILE, with - for standard input, or --no-password.")
    asked: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    return asked


def _read(file: Path) -> str:
    try:
        with sys.stdin if file == Path("-") else file.open(encoding="utf-8") as stream:
            return stream.read(MOST_READ).strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        stop(f"The password can't be read: {type(error).__name__}.")


def _print(user: UserView, *, as_json: bool) -> None:
    fields = user.model_dump()
    if as_json:
        print_json(fields)
    else:
        print_fields({name.replace("_", " "): value for name, value in fields.items()})


def _row(user: UserView) -> list[str]:
    seen = f"{age(user.last_seen_at)} ago" if user.last_seen_at else ""
    disabled = f"{user.disabled_at:%Y-%m-%d}" if user.disabled_at else ""
    return [str(user.id), user.email, user.name, user.role, user.tier, seen, disabled]
