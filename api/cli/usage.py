"""`promptstack usage`: tokens and money."""

from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.options.values import point_in_time
from promptstack.api.cli.table import Column, print_table
from promptstack.api.cli.terminal import JsonFlag, cost, out, print_items
from promptstack.repositories.usage import Group, Usage
from promptstack.services.errors import InvalidInput

NUMBERS = (
    Column("calls", right=True),
    Column("failed", rank=2, right=True),
    Column("input", rank=1, right=True),
    Column("cached", rank=5, right=True),
    Column("output", rank=1, right=True),
    Column("cost $", right=True),
    Column("p95 s", rank=3, right=True),
    Column("waited s", rank=4, right=True),
)


def usage(
    by: Annotated[str, typer.Option(help="Of day, user, provider, model.")] = "day,model",
    since: Annotated[str, typer.Option(help="A date, or back from now: 12h, 7d, 4w.")] = "30d",
    until: Annotated[str | None, typer.Option(help="A date or time; default: now.")] = None,
    user: Annotated[str | None, typer.Option(help="Only this user's, by email.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider's.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what was asked of providers, and what it cost."""
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
        print_items(map(asdict, rows))
        return
    if not together:
        out.print("Nothing was asked of any provider in that time.")
        return
    [total] = together
    keyed = [[*_keys(groups, row), *_numbers(row)] for row in rows]
    sums_up = ["together", *[""] * (len(groups) - 1)] if groups else []
    columns = [*(Column(str(group), elastic=group is Group.MODEL) for group in groups), *NUMBERS]
    if groups:
        keyed.append([*sums_up, *_numbers(total)])
    print_table(columns, keyed or [_numbers(total)], last_is_sum=bool(groups))
    if total.unknown_cost:
        out.print(
            f"The cost of {total.unknown_cost:,} calls is not known: their model has no price, or "
            "nobody knows whether they were billed. Set prices in MODELS_FILE."
        )


def _keys(groups: list[Group], row: Usage) -> list[str]:
    named = asdict(row)
    return [str(named[str(group)] or "-") for group in groups]


def _numbers(row: Usage) -> list[str]:
    return [
        f"{row.calls:,}",
        f"{row.failed:,}",
        f"{row.input_tokens:,}",
        f"{row.cached_tokens:,}",
        f"{row.output_tokens:,}",
        cost(row.cost_usd, row.unknown_cost).removeprefix("$"),
        "" if row.p95_latency_seconds is None else f"{row.p95_latency_seconds:.2f}",
        f"{row.limiter_wait_seconds:,.1f}",
    ]


def _groups(named: str) -> list[Group]:
    try:
        return [Group(name.strip()) for name in named.split(",") if name.strip()]
    except ValueError as error:
        raise InvalidInput(f"--by takes some of {', '.join(Group)}.") from error
