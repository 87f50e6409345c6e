"""`promptstack runs embed` and `generate`: check a source, start a run, write its results."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from promptstack.api.cli.connection import connected
from promptstack.api.cli.options.generation import GenerationOptions
from promptstack.api.cli.runs.end import finish, print_run
from promptstack.api.cli.runs.options import ReadingOptions, StartOptions
from promptstack.api.cli.runs.preflight import preflight_json, show_preflight
from promptstack.api.cli.terminal import WRONG_INPUT, plural, print_json, stop
from promptstack.repositories.run_models import RunKind
from promptstack.services.runs.intake.ingest import Intake
from promptstack.services.runs.views import Preflight
from promptstack.tasks.composition import PromptStack

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A file (.jsonl, .csv, .parquet, .txt), a folder, or - for stdin."
    ),
]


def embed(
    source: SourceArgument,
    *,
    reading_options: ReadingOptions,
    chunk_tokens: Annotated[
        int | None, typer.Option(help="Cut texts into chunks of at most so many tokens.")
    ] = None,
    chunk_overlap_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a chunk that the next may begin with; unless given, an eighth."
        ),
    ] = None,
    start: StartOptions,
) -> None:
    """Embed every text of a file or folder."""
    with connected() as stack:
        start.target.check(RunKind.EMBEDDING, source, detach=start.detach)
        if chunk_tokens is None and source != "-" and Path(source).is_dir():
            chunk_tokens = stack.settings.chunk_tokens
            if chunk_overlap_tokens is None:
                chunk_overlap_tokens = stack.settings.chunk_overlap_tokens
        reading = reading_options.reading(
            chunk_tokens=chunk_tokens, chunk_overlap_tokens=chunk_overlap_tokens
        )
        with _reading_shown() as on_progress:
            preflight = stack.runs.prepare_embedding(
                _source(source), **start.keywords(source, reading, on_progress)
            )
        _go_on(stack, preflight, start, named_by_id=chunk_tokens is not None)


def generate(
    source: SourceArgument,
    *,
    template: Annotated[
        str | None, typer.Option(help="The prompt over fields: 'Summarise: {text}'.")
    ] = None,
    generation: GenerationOptions,
    reuse: Annotated[bool, typer.Option(help="Take answers of earlier runs.")] = True,
    reading_options: ReadingOptions,
    start: StartOptions,
) -> None:
    """Generate an answer to every prompt of a file."""
    with connected() as stack:
        start.target.check(RunKind.GENERATION, source, detach=start.detach)
        reading = reading_options.reading(template=template)
        with _reading_shown() as on_progress:
            preflight = stack.runs.prepare_generation(
                _source(source),
                reuse=reuse,
                **generation.keywords(),
                **start.keywords(source, reading, on_progress),
            )
        _go_on(stack, preflight, start, named_by_id=Path(source).is_dir())


@contextmanager
def _reading_shown() -> Iterator[Callable[[Intake], None]]:
    """Show how much has been read, at each call of the function this yields."""

    def show(intake: Intake) -> None:
        status.update(f"Reading: {intake.items:,} inputs, {intake.bad:,} of them bad")

    with Console(stderr=True).status("Reading ...") as status:
        yield show


def _go_on(
    stack: PromptStack, preflight: Preflight, start: StartOptions, *, named_by_id: bool
) -> None:
    """Print the preflight and start the run, unless somebody must decide first."""
    show_preflight(preflight, named_by_id=named_by_id)
    run_id = preflight.run_id
    if start.dry_run:
        stack.runs.discard(run_id)
        if start.as_json:
            print_json(preflight_json(preflight))
        if preflight.bad and not start.skip_bad:
            stop("some inputs are bad; mend them or give --skip-bad.", WRONG_INPUT)
        return
    if preflight.bad and not start.skip_bad and not _agrees(preflight):
        stack.runs.discard(run_id)
        stop("some inputs are bad, so nothing was done; mend them or give --skip-bad.", WRONG_INPUT)
    run = stack.runs.start(run_id)
    if start.detach:
        print_run(run, as_json=start.as_json)
    else:
        finish(stack, run_id, start.target, as_json=start.as_json)


def _agrees(preflight: Preflight) -> bool:
    if not sys.stdin.isatty():
        return False
    try:
        return typer.confirm(f"Go on without the {plural(preflight.bad, 'bad input')}?", err=True)
    except typer.Abort:
        return False


def _source(given: str) -> str | Path:
    return given if given == "-" else Path(given)
