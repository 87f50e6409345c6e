"""`promptstack usage`: tokens and money."""

from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from api.cli.connection import connected
from api.cli.terminal import JsonFlag, dollars, out, point_in_time, print_json, printable
from repositories.usage import Group, Usage
from services.errors import InvalidInput


def usage(
    by: Annotated[str, typer.Option(help="Of day, user, provider, model.")] = "day,model",
    since: Annotated[str, typer.Option(help="A date, or back from now: 12h, 7d, 4w.")] = "30d",
    until: Annotated[str | None, typer.Option(help="A date or time; default: now.")] = None,
    user: Annotated[str | None, typer.Option(help="Only this user's, by email.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider's.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what was asked of providers, what it took and what it cost."""
    with connected(start_servers=True) as stack:
        groups = _groups(by)
        sums = partial(
            stack.usage.sums,
            since=point_in_time(since),
            until=point_in_time(until) if until else None,
            email=user,
            provider=provider,
            model=model,
        )
        rows, together = sums(groups), sums([])
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    if not together:
        out.print("Nothing was asked of any provider in that time.")
        return
    [total] = together
    out.print(_table(groups, rows, total))
    if total.unknown_cost:
        out.print(
            f"The cost of {total.unknown_cost:,} calls is not known: their model has no price, or "
            "nobody knows whether they were billed. Set prices in MODELS_FILE."
        )


def _table(groups: list[Group], rows: list[Usage], total: Usage) -> Table:
    table = Table(box=None, pad_edge=False)
    for group in groups:
        table.add_column(str(group))
    for name in ("calls", "failed", "input", "cached", "output", "cost $", "p95 s", "waited s"):
        table.add_column(name, justify="right")
    for row in rows:
        named = asdict(row)
        keys = [escape(printable(str(named[str(group)] or "-"))) for group in groups]
        table.add_row(*keys, *_numbers(row))
    if groups:
        table.add_row("together", *[""] * (len(groups) - 1), *_numbers(total), style="bold")
    else:
        table.add_row(*_numbers(total))
    return table


def _numbers(row: Usage) -> list[str]:
    cost = dollars(row.cost_usd) if row.unknown_cost < row.calls else "?"
    return [
        f"{row.calls:,}",
        f"{row.failed:,}",
        f"{row.input_tokens:,}",
        f"{row.cached_tokens:,}",
        f"{row.output_tokens:,}",
        cost + ("+?" if 0 < row.unknown_cost < row.calls else ""),
        "" if row.p95_latency_seconds is None else f"{row.p95_latency_seconds:.2f}",
        f"{row.limiter_wait_seconds:,.1f}",
    ]


def _groups(named: str) -> list[Group]:
    try:
        return [Group(name.strip()) for name in named.split(",") if name.strip()]
    except ValueError as error:
        raise InvalidInput(f"--by takes some of {', '.join(Group)}.") from error
