"""What the commands print: text for people on a terminal, JSON for programs on standard output."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from config.errors import PromptStackError

OK, JOB_FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: the work is done; a job failed; nothing was done; stopped by Ctrl-C."""

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

PIPED_WIDTH = 160

# A pipe has no width; rich would take 80 and cut tables.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPED_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))


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
