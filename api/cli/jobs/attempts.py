"""`promptstack attempts`: provider calls, and those that may have been paid without an answer."""

from dataclasses import asdict
from decimal import Decimal
from typing import Annotated

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.options.values import point_in_time
from promptstack.api.cli.table import Column, print_table
from promptstack.api.cli.terminal import JsonFlag, dollars, out, plural, print_items
from promptstack.repositories.models import AttemptState, Billing
from promptstack.repositories.usage import Unsettled
from promptstack.services.jobs.views import CallView

MEANING = {
    AttemptState.STARTED: "under way now, or their worker has not been missed yet",
    AttemptState.LOST: "their worker died",
    AttemptState.CANCELLED: "closed by a cancel, a deadline or a shutdown",
    AttemptState.FAILED: "timed out, or the connection broke",
}


COLUMNS = (
    Column("began", rank=5),
    Column("job"),
    Column("model", rank=6),
    Column("state"),
    Column("money", rank=2),
    Column("tokens", rank=4, right=True),
    Column("cost $", rank=1, right=True),
    Column("error or note", rank=3, elastic=True),
)


def attempts(
    unsettled: Annotated[
        bool, typer.Option("--unsettled", help="Only calls that may have been paid and lost.")
    ] = False,
    since: Annotated[str, typer.Option(help="A date, or back from now: 12h, 7d, 4w.")] = "30d",
    limit: Annotated[int, typer.Option(min=0, max=10_000, help="How many to list.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Show provider calls, and what is known of their cost."""
    began = point_in_time(since)
    with connected(start_servers=True) as stack:
        calls = stack.usage.calls(only_unsettled=unsettled, since=began, limit=limit)
        sums = stack.usage.unsettled(since=began)
    if as_json:
        print_items(
            (call.model_dump(mode="json") for call in calls),
            unsettled=[asdict(row) for row in sums],
        )
        return
    if calls:
        print_table(COLUMNS, list(map(_row, calls)))
    _say(sums)


def _row(call: CallView) -> list[str]:
    return [
        f"{call.started_at:%Y-%m-%d %H:%M:%S}",
        str(call.job_id or "pruned"),
        f"{call.provider}/{call.model}",
        call.state,
        call.billing.replace("_", " "),
        _tokens(call),
        _cost(call),
        ": ".join(filter(None, (call.error_code, call.note))),
    ]


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
    known = sum((row.expected_cost_usd or Decimal(0) for row in sums), Decimal(0))
    unknown = sum(row.unknown_cost for row in sums)
    out.print(
        f"{plural(calls, 'call')} may have been billed without an answer: about "
        f"{tokens:,} tokens, "
        + (f"${dollars(known)}" if unknown < calls else "of unknown cost")
        + (f" and {plural(unknown, 'call')} of a model without a price." if unknown else ".")
    )
    for row in sums:
        out.print(f"  {row.calls:,} {row.state}: {MEANING.get(row.state, '')}")
