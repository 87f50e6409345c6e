"""`promptstack runs embed` and `generate`: check a file, say what it costs, run it, write it."""

import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from promptstack.api.cli.connection import connected
from promptstack.api.cli.jobs.documents import read_schema
from promptstack.api.cli.jobs.enqueue import Expires, Options, Retries, Seed, Stop, options_of
from promptstack.api.cli.runs.end import finish, print_run
from promptstack.api.cli.runs.output import Target
from promptstack.api.cli.runs.preflight import preflight_json, show_preflight
from promptstack.api.cli.terminal import WRONG_INPUT, JsonFlag, plural, print_json, seconds_of, stop
from promptstack.repositories.runs.models import RunKind
from promptstack.services.errors import InvalidInput
from promptstack.services.runs.intake.ingest import Intake
from promptstack.services.runs.views import Preflight
from promptstack.services.sources.reading import Format, Reading
from promptstack.services.text import printable_path
from promptstack.tasks.composition import PromptStack

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A file (.jsonl, .csv, .parquet, .txt), a folder, or - for stdin."
    ),
]
Provider = Annotated[str | None, typer.Option(help="Who is asked.")]
Model = Annotated[str | None, typer.Option(help="The provider's default when left out.")]
FormatOption = Annotated[
    Format | None, typer.Option("--format", help="Where the name's suffix doesn't tell.")
]
TextColumn = Annotated[str | None, typer.Option(help="Field of the text; `text`, else `prompt`.")]
IdColumn = Annotated[str | None, typer.Option(help="Field of the id; `custom_id`, else `id`.")]
Columns = Annotated[
    str | None, typer.Option(help="Fields to keep as metadata, with commas; all when left out.")
]
InFlight = Annotated[int | None, typer.Option(help="Calls under way at once in each worker.")]
MaxCost = Annotated[
    str | None, typer.Option(metavar="DOLLARS", help="The run stops before it costs more.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only check, count and estimate.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on without inputs that are bad.")]
Detach = Annotated[bool, typer.Option("--detach", help="Don't wait for the end.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write to .jsonl, .parquet, .npy or .csv.")
]
Name = Annotated[str, typer.Option(help="A name to know the run by.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Take the place of files that are there already.")
]


def embed(
    source: SourceArgument,
    provider: Provider = None,
    model: Model = None,
    format_: FormatOption = None,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    columns: Columns = None,
    chunk_tokens: Annotated[
        int | None, typer.Option(help="Cut texts into chunks of at most so many tokens.")
    ] = None,
    chunk_overlap_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a chunk that the next may begin with; unless given, an eighth."
        ),
    ] = None,
    in_flight: InFlight = None,
    max_cost: MaxCost = None,
    max_retries: Retries = None,
    expires_in: Expires = None,
    name: Name = "",
    dry_run: DryRun = False,
    skip_bad: SkipBad = False,
    detach: Detach = False,
    output: Output = None,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Embed every text of a file or folder."""
    with connected() as stack:
        target = Target(output, overwrite=overwrite)
        target.check(RunKind.EMBEDDING, source, detach=detach)
        if chunk_tokens is None and source != "-" and Path(source).is_dir():
            chunk_tokens = stack.settings.chunk_tokens
            if chunk_overlap_tokens is None:
                chunk_overlap_tokens = stack.settings.chunk_overlap_tokens
        reading = Reading(
            format=format_,
            text_column=text_column,
            id_column=id_column,
            columns=_names(columns),
            chunk_tokens=chunk_tokens,
            chunk_overlap_tokens=chunk_overlap_tokens,
        )
        reader = _Reader()
        with reader:
            preflight = stack.runs.prepare_embedding(
                _source(source),
                provider=provider,
                model=model,
                **_options(
                    name=name or printable_path(source),
                    in_flight=in_flight,
                    max_cost=max_cost,
                    max_retries=max_retries,
                    expires_in=expires_in,
                    reading=reading,
                    reader=reader,
                ),
            )
        _go_on(
            stack,
            preflight,
            dry_run=dry_run,
            skip_bad=skip_bad,
            detach=detach,
            target=target,
            named_by_id=chunk_tokens is not None,
            as_json=as_json,
        )


def generate(
    source: SourceArgument,
    template: Annotated[
        str | None, typer.Option(help="The prompt over fields: 'Summarise: {text}'.")
    ] = None,
    provider: Provider = None,
    model: Model = None,
    system: Annotated[str | None, typer.Option(help="System prompt of all.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 to 2.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="A file with the JSON schema that answers must follow.")
    ] = None,
    stop_at: Stop = None,
    seed: Seed = None,
    option: Options = None,
    reuse: Annotated[bool, typer.Option(help="Take answers of earlier runs.")] = True,
    format_: FormatOption = None,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    columns: Columns = None,
    in_flight: InFlight = None,
    max_cost: MaxCost = None,
    max_retries: Retries = None,
    expires_in: Expires = None,
    name: Name = "",
    dry_run: DryRun = False,
    skip_bad: SkipBad = False,
    detach: Detach = False,
    output: Output = None,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Generate an answer to every prompt of a file."""
    with connected() as stack:
        target = Target(output, overwrite=overwrite)
        target.check(RunKind.GENERATION, source, detach=detach)
        reading = Reading(
            format=format_,
            text_column=text_column,
            id_column=id_column,
            columns=_names(columns),
            template=template,
        )
        reader = _Reader()
        with reader:
            preflight = stack.runs.prepare_generation(
                _source(source),
                provider=provider,
                model=model,
                system=system,
                temperature=temperature,
                max_tokens=max_tokens,
                json_schema=read_schema(json_schema),
                stop=stop_at or [],
                seed=seed,
                options=options_of(option),
                reuse=reuse,
                **_options(
                    name=name or printable_path(source),
                    in_flight=in_flight,
                    max_cost=max_cost,
                    max_retries=max_retries,
                    expires_in=expires_in,
                    reading=reading,
                    reader=reader,
                ),
            )
        _go_on(
            stack,
            preflight,
            dry_run=dry_run,
            skip_bad=skip_bad,
            detach=detach,
            target=target,
            named_by_id=Path(source).is_dir(),
            as_json=as_json,
        )


class _Reader:
    """Shows how much has been read."""

    def __init__(self) -> None:
        self._status = Console(stderr=True).status("Reading ...")

    def __enter__(self) -> None:
        self._status.start()

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def on_progress(self, intake: Intake) -> None:
        """Show how much has been read."""
        self._status.update(f"Reading: {intake.items:,} inputs, {intake.bad:,} of them bad")


def _options(
    *,
    name: str,
    in_flight: int | None,
    max_cost: str | None,
    max_retries: int | None,
    expires_in: str | None,
    reading: Reading,
    reader: _Reader,
) -> dict[str, Any]:
    return {
        "name": name[-200:],
        "in_flight": in_flight,
        "max_cost_usd": dollars_of(max_cost),
        "max_retries": max_retries,
        "expires_in": seconds_of(expires_in),
        "reading": reading,
        "on_progress": reader.on_progress,
    }


def _go_on(
    stack: PromptStack,
    preflight: Preflight,
    *,
    dry_run: bool,
    skip_bad: bool,
    detach: bool,
    target: Target,
    named_by_id: bool,
    as_json: bool,
) -> None:
    """Say what is ahead; start the run, unless somebody must decide first."""
    show_preflight(preflight, named_by_id=named_by_id)
    run_id = preflight.run_id
    if dry_run:
        stack.runs.discard(run_id)
        if as_json:
            print_json(preflight_json(preflight))
        if preflight.bad and not skip_bad:
            stop("some inputs are bad; mend them or give --skip-bad.", WRONG_INPUT)
        return
    if preflight.bad and not skip_bad and not _agrees(preflight):
        stack.runs.discard(run_id)
        stop("some inputs are bad, so nothing was done; mend them or give --skip-bad.", WRONG_INPUT)
    run = stack.runs.start(run_id)
    if detach:
        print_run(run, as_json=as_json)
        return
    finish(stack, run_id, target, as_json=as_json)


def _agrees(preflight: Preflight) -> bool:
    if not sys.stdin.isatty():
        return False
    try:
        return typer.confirm(f"Go on without the {plural(preflight.bad, 'bad input')}?", err=True)
    except typer.Abort:
        return False


def dollars_of(given: str | None) -> Decimal | None:
    """Read an amount of dollars. Raises `InvalidInput`."""
    if given is None:
        return None
    try:
        amount = Decimal(given.removeprefix("$"))
    except InvalidOperation:
        raise InvalidInput(f"{given[:40]!r} is no amount of dollars.") from None
    if not amount.is_finite():
        raise InvalidInput("The amount must be a number.")
    return amount


def _source(given: str) -> str | Path:
    return given if given == "-" else Path(given)


def _names(given: str | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(name.strip() for name in given.split(",") if name)
