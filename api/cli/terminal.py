"""What the commands print: text for people on a terminal, JSON for programs on standard output."""

import io
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from config.controls import escaped
from config.errors import PromptStackError
from services.errors import InvalidInput

JOB_FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130
"""Exit codes: a job failed; nothing was done; stopped by Ctrl-C."""

UUID_CHARACTERS = 36

SMALLEST = Decimal("0.000001")
UNITS = {"h": "hours", "d": "days", "w": "weeks"}

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

PIPED_WIDTH = 160

# A pipe has no width; rich would take 80 and cut tables.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPED_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """Show control characters instead of sending them to the terminal, which would obey them."""
    return escaped(text, but="\n\t")


def print_what_can_be() -> None:
    """Let a stream that is not UTF-8 get an escape for what it lacks, instead of an error.

    The answer was paid for by then.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(value: Any, *, to_err: bool = False) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2, default=_as_text, ensure_ascii=False), err=to_err)


def _as_text(value: Any) -> str:
    match value:
        case datetime():
            return value.isoformat()
        case Decimal():
            return f"{value.normalize():f}"
        case _:
            return str(value)


def stop(message: str, code: int = WRONG_INPUT) -> NoReturn:
    """Say on standard error why there is nothing more to do, and exit."""
    err.print(f"promptstack: {message}", style="red", markup=False)
    raise typer.Exit(code)


@contextmanager
def plain_errors() -> Iterator[None]:
    """End a command with one line instead of a traceback, for errors that we can explain."""
    try:
        yield
    except PromptStackError as error:
        stop(str(error))
    except KeyboardInterrupt:
        err.print("\nInterrupted. Jobs that were accepted go on; see `promptstack jobs list`.")
        raise typer.Exit(INTERRUPTED) from None


def dollars(amount: Decimal) -> str:
    """Cents where there are any, and else as many digits as tell something."""
    if amount >= 1 or amount == 0:
        return f"{amount:,.2f}"
    return f"{amount:.6f}" if amount >= SMALLEST else f"<{SMALLEST}"


def point_in_time(given: str) -> datetime:
    """Read a date, a time, or a span back from now. Raises `InvalidInput`."""
    back = re.fullmatch(r"(\d{1,4})([hdw])", given)
    if back:
        return datetime.now(UTC) - timedelta(**{UNITS[back[2]]: int(back[1])})
    try:
        then = datetime.fromisoformat(given)
    except ValueError as error:
        raise InvalidInput(
            f"{given[:40]!r} is no time; write 2026-11-23, 2026-11-23T12:00, 12h, 7d or 4w."
        ) from error
    return then if then.tzinfo else then.replace(tzinfo=UTC)


def plural(count: int, what: str) -> str:
    """Count things in words."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
