"""`promptstack runs batch`: a file as OpenAI's Batch API takes it, for either kind of run."""

from pathlib import Path
from typing import Annotated

import typer

from promptstack.api.cli.jobs.enqueue import Expires, Retries
from promptstack.api.cli.runs import start as run_start
from promptstack.api.cli.terminal import JsonFlag
from promptstack.repositories.runs.models import RunKind
from promptstack.services.errors import InvalidInput
from promptstack.services.sources.batch_lines import kind_of_requests
from promptstack.services.sources.reading import Format, Reading


def batch(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Lines with custom_id, method, url and body.")
    ],
    provider: run_start.Provider = None,
    model: run_start.Model = None,
    in_flight: run_start.InFlight = None,
    max_cost: run_start.MaxCost = None,
    max_retries: Retries = None,
    expires_in: Expires = None,
    name: run_start.Name = "",
    dry_run: run_start.DryRun = False,
    skip_bad: run_start.SkipBad = False,
    detach: run_start.Detach = False,
    output: run_start.Output = None,
    overwrite: run_start.Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Do the requests of a file of OpenAI's Batch API."""
    start = run_start.embed if _kind_of(source) == RunKind.EMBEDDING else run_start.generate
    start(
        source,
        provider=provider,
        model=model,
        format_=Format.JSONL,
        in_flight=in_flight,
        max_cost=max_cost,
        max_retries=max_retries,
        expires_in=expires_in,
        name=name,
        dry_run=dry_run,
        skip_bad=skip_bad,
        detach=detach,
        output=output,
        overwrite=overwrite,
        as_json=as_json,
    )


def _kind_of(source: str) -> str:
    # Here, as pyarrow takes 40 MB, and other commands have no use for it.
    from promptstack.services.sources.inputs import looked_at  # noqa: PLC0415

    if not Path(source).is_file():
        raise InvalidInput(
            f"A batch is read twice, from a file; for {source!a:.200} use `runs generate` or "
            "`runs embed`."
        )
    _, records = looked_at(Path(source), Reading(Format.JSONL))
    return kind_of_requests(records)
