"""`promptstack attempts`: provider calls, and what may have been paid for without an answer."""

from dataclasses import asdict
from decimal import Decimal
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from api.cli.connection import connected
from api.cli.terminal import JsonFlag, dollars, out, plural, point_in_time, print_json, printable
from repositories.models import AttemptState, Billing
from repositories.usage import Unsettled
from services.views import CallView

MEANING = {
    AttemptState.STARTED: "under way now, or their worker has not been missed yet",
    AttemptState.LOST: "their worker died",
    AttemptState.CANCELLED: "closed by a cancel, a deadline or a shutdown",
    AttemptState.FAILED: "timed out, or the connection broke",
}


def attempts(
    unsettled: Annotated[
        bool, typer.Option("--unsettled", help="Only calls that may have been paid and lost.")
    ] = False,
    since: Annotated[str, typer.Option(help="A date, or back from now: 12h, 7d, 4w.")] = "30d",
    limit: Annotated[int, typer.Option(min=0, max=10_000, help="How many to list.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Show provider calls, newest first, and what is known of their money."""
    began = point_in_time(since)
    with connected(start_servers=True) as stack:
        calls = stack.usage.calls(only_unsettled=unsettled, since=began, limit=limit)
        sums = stack.usage.unsettled(since=began)
    if as_json:
        print_json(
            {
                "attempts": [call.model_dump(mode="json") for call in calls],
                "unsettled": [asdict(row) for row in sums],
            }
        )
        return
    if calls:
        out.print(_table(calls))
    _say(sums)


def _table(calls: list[CallView]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("began", "job", "model", "state", "money", "tokens", "cost $", "error"):
        table.add_column(name, no_wrap=name == "job")
    for call in calls:
        table.add_row(
            f"{call.started_at:%Y-%m-%d %H:%M:%S}",
            str(call.job_id or "pruned"),
            escape(printable(f"{call.provider}/{call.model}")),
            str(call.state),
            str(call.billing).replace("_", " "),
            _tokens(call),
            _cost(call),
            call.error_code or "",
        )
    return table


def _tokens(call: CallView) -> str:
    if call.input_tokens is None:
        return "" if call.expected_tokens is None else f"~{call.expected_tokens:,}"
    return f"{call.input_tokens + (call.output_tokens or 0):,}"


def _cost(call: CallView) -> str:
    if call.billing == Billing.UNKNOWN:
        return "?" if call.expected_cost_usd is None else f"~{dollars(call.expected_cost_usd)}"
    return "?" if call.cost_usd is None else dollars(call.cost_usd)


def _say(sums: list[Unsettled]) -> None:
    if not sums:
        out.print("No call is unsettled: what was paid for was answered.")
        return
    calls = sum(row.calls for row in sums)
    tokens = sum(row.expected_tokens for row in sums)
    cost = sum((row.expected_cost_usd for row in sums), Decimal(0))
    unknown = sum(row.unknown_cost for row in sums)
    out.print(
        f"{plural(calls, 'call')} may have been billed without an answer: about "
        f"{tokens:,} tokens, ${dollars(cost)}"
        + (f" and {plural(unknown, 'call')} of a model without a price." if unknown else ".")
    )
    for row in sums:
        out.print(f"  {row.calls:,} {row.state}: {MEANING.get(row.state, '')}")
