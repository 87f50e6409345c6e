"""`promptstack keys ...`: keys to the HTTP API."""

from typing import Annotated, Any

import typer

from promptstack.api.cli.budgets import used
from promptstack.api.cli.connection import connected
from promptstack.api.cli.options.values import dollars_of, time_ahead
from promptstack.api.cli.table import Column, print_table
from promptstack.api.cli.terminal import (
    ID_HELP,
    JsonFlag,
    age,
    err,
    out,
    print_items,
    print_json,
    until,
)
from promptstack.repositories.access_models import Scope
from promptstack.services.access.emails import OPERATOR
from promptstack.services.access.key_terms import USUAL_SCOPES, KeyView
from promptstack.services.access.keys import IssuedKey
from promptstack.services.budgets.service import BudgetView, Subject
from promptstack.services.budgets.service import Scope as BudgetScope

COLUMNS = (
    Column("id"),
    Column("begins", rank=6),
    Column("user", rank=1, elastic=True),
    Column("name", rank=2, elastic=True),
    Column("admin", rank=4),
    Column("created", rank=7),
    Column("used", rank=5),
    Column("ends", rank=3),
    Column("spent", rank=8),
)
MaxUsd = Annotated[
    str | None, typer.Option(metavar="USD", help="The most it may cost. Unset: no cap.")
]
KeyId = Annotated[
    str, typer.Argument(metavar="ID", help=f"Id of the key, or how it begins; {ID_HELP}.")
]


def create(
    email: Annotated[str, typer.Option(help="Whose key it is.")] = OPERATOR,
    name: Annotated[str, typer.Option(help="What it is for.")] = "command line",
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What it may be used for; repeat it. Unset: all but admin."),
    ] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="May also do what its user's role allows.")
    ] = False,
    provider: Annotated[
        list[str] | None, typer.Option(help="A provider that it may ask; repeat it. Unset: all.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model that it may ask, such as gpt-5-*; repeat it. Unset: all."),
    ] = None,
    requests_a_minute: Annotated[
        int | None, typer.Option(help="Most HTTP requests a minute. Unset: no limit.")
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(metavar="SPAN", help="When it ends: 12h, 90d, 52w. Unset: never.")
    ] = None,
    max_usd_day: MaxUsd = None,
    max_usd_month: MaxUsd = None,
    max_usd_total: MaxUsd = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key and show it, this once."""
    said = {"day": max_usd_day, "month": max_usd_month, "total": max_usd_total}
    caps = {window: dollars_of(usd) for window, usd in said.items() if usd is not None}
    scopes = {*(scope or USUAL_SCOPES), *([Scope.ADMIN] if admin else [])}
    terms = {
        "name": name,
        "scopes": scopes,
        "providers": provider or None,
        "models": model or None,
        "requests_a_minute": requests_a_minute,
        "expires_at": time_ahead(expires_in),
    }
    with connected(start_servers=True) as stack:
        issued = stack.keys.issue(email, terms)
        if caps:
            # Before anybody has the secret.
            stack.budgets.set(Subject(BudgetScope.KEY, issued.key.id), caps)
    _show(issued, as_json=as_json)


def rotate(key_id: KeyId, as_json: JsonFlag = False) -> None:
    """Give a key a new secret; the old one opens for a day more."""
    with connected(start_servers=True) as stack:
        issued = stack.keys.rotate(stack.keys.find(key_id))
    _show(issued, as_json=as_json)


def _show(issued: IssuedKey, *, as_json: bool) -> None:
    if issued.is_new_user:
        err.print(f"{issued.key.email} is a new user.", markup=False)
    if as_json:
        print_json({"key": issued.secret, **dict(issued.key)})
        return
    err.print(
        f"Key of {issued.key.email}; it is not shown again. Send it as Authorization: Bearer KEY."
    )
    if issued.key.previous_until is not None:
        err.print(f"The one before it opens for {until(issued.key.previous_until)} more.")
    out.print(issued.secret, markup=False)


def list_(as_json: JsonFlag = False) -> None:
    """List keys, oldest first; the keys themselves are not kept."""
    with connected(start_servers=True) as stack:
        keys = stack.keys.get_all()
        budgets = {one.id: one for one in stack.budgets.get_all()}
    if as_json:
        print_items({**dict(key), "budget": _dumped(budgets.get(key.id))} for key in keys)
    elif keys:
        print_table(COLUMNS, [_row(key, budgets.get(key.id)) for key in keys])
    else:
        out.print("No keys.")


def _dumped(budget: BudgetView | None) -> dict[str, Any] | None:
    return None if budget is None else budget.model_dump(mode="json")


def _row(key: KeyView, budget: BudgetView | None) -> list[str]:
    return [
        str(key.id),
        key.prefix,
        key.email,
        key.name,
        "yes" if Scope.ADMIN in key.scopes else "",
        f"{key.created_at:%Y-%m-%d}",
        f"{age(key.last_used_at)} ago" if key.last_used_at else "never",
        _end(key),
        used(budget.caps) if budget else "",
    ]


def _end(key: KeyView) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    return f"{key.expires_at:%Y-%m-%d}" if key.expires_at else ""


def revoke(key_id: KeyId, as_json: JsonFlag = False) -> None:
    """Let a key open nothing from now on."""
    with connected(start_servers=True) as stack:
        found = stack.keys.find(key_id)
        stack.keys.revoke(found)
    if as_json:
        print_json({"id": found, "revoked": True})
    else:
        out.print(f"Key {found} is revoked.")
