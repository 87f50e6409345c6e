"""`promptstack budgets ...`: spend caps of keys, users and the deployment."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.options.values import dollars_of
from promptstack.api.cli.table import Column, print_table
from promptstack.api.cli.terminal import JsonFlag, out, print_items, print_json
from promptstack.repositories.budgets.spending import Window
from promptstack.services.budgets.admission import dollars
from promptstack.services.budgets.service import (
    OF_DEPLOYMENT,
    BudgetView,
    CapView,
    Scope,
    Subject,
)
from promptstack.services.errors import InvalidInput
from promptstack.tasks.composition import PromptStack

COLUMNS = (
    Column("of"),
    Column("id", rank=3),
    Column("name", rank=1, elastic=True),
    Column("a day", rank=4),
    Column("a month", rank=5),
    Column("in total", rank=6),
)
NONE = "none"

Cap = Annotated[str | None, typer.Option(metavar="USD", help="Dollars, or none for no cap.")]


def set_(
    key: Annotated[str | None, typer.Option(help="Of this key: its id, or how it begins.")] = None,
    user: Annotated[
        str | None, typer.Option(help="Of this user, by all their keys: the e-mail, or the id.")
    ] = None,
    deployment: Annotated[
        bool, typer.Option("--deployment", help="Of all users and keys together.")
    ] = False,
    day: Cap = None,
    month: Cap = None,
    total: Cap = None,
    as_json: JsonFlag = False,
) -> None:
    """Set what a key, a user or the deployment may spend; it holds at once."""
    said = {"day": day, "month": month, "total": total}
    caps = {window: cap_of(usd) for window, usd in said.items() if usd is not None}
    with connected(start_servers=True) as stack:
        budget = stack.budgets.set(_subject(stack, key, user, deployment=deployment), caps)
    if as_json:
        print_json({"budget": budget and budget.model_dump(mode="json")})
    elif budget is None:
        out.print("No cap is left.")
    else:
        print_table(COLUMNS, [_row(budget)])


def show(
    user: Annotated[
        str | None, typer.Option(help="Only of this user and their keys: the e-mail, or the id.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show all caps, and how much of them is used."""
    with connected(start_servers=True) as stack:
        budgets = stack.budgets.get_all(None if user is None else stack.users.find(user))
    if as_json:
        print_items(budget.model_dump(mode="json") for budget in budgets)
    elif budgets:
        print_table(COLUMNS, list(map(_row, budgets)))
    else:
        out.print("No caps.")


def cap_of(given: str) -> Decimal | None:
    """A cap as a person types it; None for none."""
    return None if given == NONE else dollars_of(given)


def used(caps: Sequence[CapView]) -> str:
    """The caps that there are, in a few words."""
    periods = {Window.DAY: " a day", Window.MONTH: " a month", Window.TOTAL: " in total"}
    return ", ".join(f"{_of(cap)}{periods[cap.window]}" for cap in caps if cap.cap_usd is not None)


def _subject(stack: PromptStack, key: str | None, user: str | None, *, deployment: bool) -> Subject:
    if [key is not None, user is not None, deployment].count(True) != 1:
        raise InvalidInput("Say whose cap it is: --key, --user, or --deployment.")
    if key is not None:
        return Subject(Scope.KEY, stack.keys.find(key))
    return OF_DEPLOYMENT if user is None else Subject(Scope.USER, stack.users.find(user))


def _row(budget: BudgetView) -> list[str]:
    by_window = {cap.window: cap for cap in budget.caps}
    return [
        str(budget.scope),
        str(budget.id or ""),
        budget.name,
        *(_of(by_window[window]) for window in Window),
    ]


def _of(cap: CapView) -> str:
    used_ = dollars(cap.used_usd)
    return used_ if cap.cap_usd is None else f"{used_} of {dollars(cap.cap_usd)}"
