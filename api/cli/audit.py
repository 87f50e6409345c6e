"""`promptstack audit`: who did what."""

import json
import time
from functools import partial
from typing import Annotated
from uuid import UUID

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.options.values import point_in_time
from promptstack.api.cli.table import Column, print_table
from promptstack.api.cli.terminal import JsonFlag, out, print_items, printable
from promptstack.services.audit.log import AuditView

FOLLOW_SECONDS = 1.0
READ_AT_ONCE = 500
LATE_IDS = 60_000 << 80
"""A minute of ids: their first 48 bits are the time in milliseconds."""
COLUMNS = (
    Column("at"),
    Column("who", rank=1, elastic=True),
    Column("by", rank=4),
    Column("action"),
    Column("on", rank=2, elastic=True),
    Column("result", rank=3),
    Column("from", rank=5, elastic=True),
    Column("detail", rank=6, elastic=True),
)


def audit(
    actor: Annotated[
        str | None, typer.Option(help="Only by this e-mail, or this id of a user or a key.")
    ] = None,
    action: Annotated[
        str | None, typer.Option(help="Only this action, such as key.created, or all of key.")
    ] = None,
    object_: Annotated[
        str | None, typer.Option("--object", help="Only on what has this id or name.")
    ] = None,
    since: Annotated[str, typer.Option(help="A date, or back from now: 12h, 7d, 4w.")] = "30d",
    until: Annotated[str | None, typer.Option(help="A date or time; default: now.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print new entries as they come, until Ctrl-C.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show who did what, on what, from where and when."""
    with connected(start_servers=True) as stack:
        read = partial(
            stack.audit.get_many,
            actor=actor,
            action=action,
            object_id=object_,
            since=point_in_time(since),
            until=point_in_time(until) if until else None,
        )
        entries = read(limit=limit)
        if follow:
            _follow(read, entries, as_json=as_json)
    if as_json:
        print_items(entry.model_dump(mode="json") for entry in entries)
    elif entries:
        print_table(COLUMNS, list(map(_row, entries)))
    else:
        out.print("No entries.")


def _follow(read: "partial[list[AuditView]]", entries: list[AuditView], *, as_json: bool) -> None:
    """Print what is there, oldest first, and then what comes: one line an entry, for ever."""
    for entry in reversed(entries):
        _print_line(entry, as_json=as_json)
    start = after = entries[0].id if entries else None
    seen: set[UUID] = set()
    while True:
        page = read(after=after, newest_first=False, limit=READ_AT_ONCE)
        for entry in page:
            if entry.id not in seen:
                _print_line(entry, as_json=as_json)
        seen.update(entry.id for entry in page)
        if len(page) == READ_AT_ONCE:
            after = page[-1].id
            continue
        if seen:
            # An entry gets its id before it is committed, so an older one may come later.
            after = max(start or UUID(int=0), UUID(int=max(seen).int - LATE_IDS))
            seen = {one for one in seen if one > after}
        time.sleep(FOLLOW_SECONDS)


def _print_line(entry: AuditView, *, as_json: bool) -> None:
    line = entry.model_dump_json() if as_json else printable("  ".join(filter(None, _row(entry))))
    typer.echo(line)


def _row(entry: AuditView) -> list[str]:
    detail = json.dumps(entry.detail, ensure_ascii=False) if entry.detail else ""
    return [
        f"{entry.at:%Y-%m-%d %H:%M:%S}",
        entry.email or str(entry.user_id or ""),
        str(entry.actor_kind).replace("_", " "),
        entry.action,
        f"{entry.object_kind} {entry.object_id}" if entry.object_kind else "",
        entry.result,
        entry.address,
        detail,
    ]
