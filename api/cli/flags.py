"""`promptstack flags ...`: feature flags."""

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.table import Column, print_table
from promptstack.api.cli.terminal import JsonFlag, age, out, print_items, print_json, stop
from promptstack.repositories.access_models import Role, Tier
from promptstack.services.audit.actor import Actor
from promptstack.services.flags.rules import OFF, ON, Rule, read_rules
from promptstack.services.flags.service import FlagView

COLUMNS = (
    Column("name"),
    Column("on for", elastic=True),
    Column("from", rank=1),
    Column("changed", rank=2),
    Column("by", rank=3, elastic=True),
)
FlagName = Annotated[str, typer.Argument(metavar="NAME", help="Such as ai_chat.")]


class Switch(StrEnum):
    """On or off for everybody."""

    ON = "on"
    OFF = "off"


def list_(as_json: JsonFlag = False) -> None:
    """List feature flags, and whom each is on for."""
    with connected(start_servers=True) as stack:
        flags = stack.flag_service.get_all()
    if as_json:
        print_items(flag.model_dump() for flag in flags)
    else:
        print_table(COLUMNS, list(map(_row, flags)))


def show(name: FlagName, as_json: JsonFlag = False) -> None:
    """Show one flag."""
    with connected(start_servers=True) as stack:
        flag = stack.flag_service.get(name)
    _print(flag, as_json=as_json)


def set_(
    name: FlagName,
    to: Annotated[
        Switch | None, typer.Argument(metavar="[on|off]", help="For everybody. Else say for whom.")
    ] = None,
    environment: Annotated[
        list[str] | None,
        typer.Option(help="development, test or production; repeat it, as each of these."),
    ] = None,
    role: Annotated[list[Role] | None, typer.Option(help="Users of this role.")] = None,
    tier: Annotated[list[Tier] | None, typer.Option(help="Users of this tier.")] = None,
    beta: Annotated[bool, typer.Option("--beta", help="Beta testers.")] = False,
    user: Annotated[list[str] | None, typer.Option(help="The user of this e-mail.")] = None,
    percentage: Annotated[
        float | None, typer.Option(help="So many of a hundred users, always the same ones.")
    ] = None,
    rules: Annotated[
        str | None, typer.Option(help="Several rules as JSON, as docs/flags.md has them.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Turn a feature on or off, for all or for some.

    With several options it is on for users who meet all of them.
    """
    rule: dict[str, Any] = {
        "environments": environment or None,
        "roles": role or None,
        "tiers": tier or None,
        "beta_testers": beta or None,
        "users": user or None,
        "percentage": percentage,
    }
    said = {what: value for what, value in rule.items() if value is not None}
    if (to is not None) + bool(said) + (rules is not None) != 1:
        stop("Say on or off, or for whom, or --rules: one of the three.")
    with connected(start_servers=True) as stack:
        found = ON if to is Switch.ON else OFF if to is Switch.OFF else _read(rules, said)
        flag = stack.flag_service.set(name, found, by=Actor.command_line())
    _print(flag, as_json=as_json)


def unset(name: FlagName, as_json: JsonFlag = False) -> None:
    """Let the settings decide again."""
    with connected(start_servers=True) as stack:
        stack.flag_service.unset(name, by=Actor.command_line())
    if as_json:
        print_json({"name": name, "unset": True})
    else:
        out.print(f"What the settings say of {name} holds again.", markup=False)


def _read(rules: str | None, said: dict[str, Any]) -> tuple[Rule, ...]:
    try:
        return read_rules(json.loads(rules) if rules is not None else said)
    except (ValueError, RecursionError) as error:
        stop(f"The rules can't be read: {error}")


def _print(flag: FlagView, *, as_json: bool) -> None:
    if as_json:
        print_json(flag.model_dump())
    else:
        print_table(COLUMNS, [_row(flag)])


def _row(flag: FlagView) -> list[str]:
    changed = age(flag.changed_at) if flag.changed_at else ""
    whom = " or ".join(map(_describe, flag.rules)) or "nobody"
    return [flag.name, whom, flag.source, changed, flag.changed_by or ""]


def _describe(rule: Rule) -> str:
    """Whom a rule fits, in words."""
    said = []
    for what, value in rule.as_json().items():
        if what == "percentage":
            said.append(f"{value:g}% of users")
        elif what == "beta_testers":
            said.append("beta testers")
        else:
            said.append(f"{what} {', '.join(value)}")
    return " and ".join(said) or "everybody"
