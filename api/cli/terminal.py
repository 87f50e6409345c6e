"""Printing: text for people, JSON for programs."""

import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from promptstack.config.control_characters import escaped
from promptstack.config.errors import PromptStackError
from promptstack.config.models_file import plain
from promptstack.repositories.jobs.outbox import Waits

JOB_FAILED, WRONG_INPUT, TIMED_OUT, INTERRUPTED = 1, 2, 124, 130
"""Exit codes: a job failed; nothing was done; not within --timeout; ended by Ctrl-C."""

SMALLEST = Decimal("0.000001")
SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}

ID_HELP = "the first characters are enough where no other begins so"
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

NO_LIMIT = 100_000


def _width() -> int | None:
    """The width of a line; None: that of the terminal. A pipe has no width."""
    return None if sys.stdout.isatty() else NO_LIMIT


out = Console(highlight=False, soft_wrap=True, width=_width())
err = Console(stderr=True, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """Escape control characters: the terminal would obey them."""
    return escaped(text, but="\n\t")


def print_json(value: Any, *, to_err: bool = False) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2, default=_as_text, ensure_ascii=False), err=to_err)


def print_items(items: Iterable[Any], **more: Any) -> None:
    """Print a list for programs: always an object with `items`."""
    print_json({"items": list(items), **more})


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print the fields of one thing, a line each, without those that are None."""
    known = {name: value for name, value in fields.items() if value is not None}
    width = max(map(len, known), default=0)
    for name, value in known.items():
        out.print(f"{name:>{width}}  {printable(_for_people(value))}", markup=False)


def _for_people(value: Any) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S %Z}" if isinstance(value, datetime) else _as_text(value)


def print_indented(text: str, by: int) -> None:
    """Print a text with all its lines indented."""
    indent = " " * by
    wrapped = textwrap.wrap(
        text, max(by + 20, out.width), initial_indent=indent, subsequent_indent=indent
    )
    out.print("\n".join(wrapped), markup=False)


def _as_text(value: Any) -> str:
    match value:
        case datetime():
            return value.isoformat()
        case Decimal():
            return plain(value)
        case _:
            return str(value)


def stop(message: str, code: int = WRONG_INPUT) -> NoReturn:
    """Print the reason on standard error, and exit."""
    err.print(f"promptstack: {message}", style="red", markup=False)
    raise typer.Exit(code)


@contextmanager
def plain_errors() -> Iterator[None]:
    """End a command with one line instead of a traceback, for our own errors and Ctrl-C."""
    try:
        yield
    except PromptStackError as error:
        stop(error.for_operators())
    except KeyboardInterrupt:
        err.print("\nInterrupted. Jobs that were accepted go on; see `promptstack jobs list`.")
        raise typer.Exit(INTERRUPTED) from None


def cost(known: Decimal | float | None, unknown: int) -> str:
    """The cost of calls; `?` stands for the part that is not known."""
    if known is None:
        return "?"
    return f"${dollars(Decimal(known))}" + ("+?" if unknown else "")


def dollars(amount: Decimal) -> str:
    """An amount in cents, or in as many digits as a smaller one needs."""
    if amount >= 1 or amount == 0:
        return f"{amount:,.2f}"
    return f"{amount:.6f}" if amount >= SMALLEST else f"<{SMALLEST}"


def age(since: datetime) -> str:
    """How long ago a time was, in the largest unit that fits."""
    return _span((datetime.now(UTC) - since).total_seconds())


def until(then: datetime) -> str:
    """How long it is until a time, alike."""
    return _span((then - datetime.now(UTC)).total_seconds())


def _span(length: float) -> str:
    seconds = max(0, int(length))
    for unit in ("w", "d", "h", "m"):
        if seconds >= 2 * SECONDS[unit]:
            return f"{seconds // SECONDS[unit]} {unit}"
    return f"{seconds} s"


def plural(count: int, what: str) -> str:
    """Count things in words."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def describe(waits: Waits) -> str:
    """Say how many wait, until when, and for what."""
    first, last = until(waits.first_at), until(waits.last_at)
    when = first if first == last else f"{first} to {last}"
    return (
        f"{plural(waits.jobs, 'job')} of {printable(f'{waits.provider}/{waits.model}')} in {when}, "
        f"{waits.error_code}: {printable(waits.error or '')}"
    )
