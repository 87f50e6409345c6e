"""`promptstack runs batch`: runs a file of OpenAI's Batch API, of either kind."""

from pathlib import Path
from typing import Annotated

import typer

from promptstack.api.cli.options.generation import GenerationOptions
from promptstack.api.cli.runs.options import ReadingOptions, StartOptions
from promptstack.api.cli.runs.start import embed, generate
from promptstack.repositories.run_models import RunKind
from promptstack.services.errors import InvalidInput
from promptstack.services.sources.batch_lines import kind_of_requests
from promptstack.services.sources.reading import Format, Reading


def batch(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Lines with custom_id, method, url and body.")
    ],
    *,
    start: StartOptions,
) -> None:
    """Do the requests of a file of OpenAI's Batch API."""
    lines = ReadingOptions(format_=Format.JSONL)
    if _kind_of(source) == RunKind.EMBEDDING:
        embed(source, reading_options=lines, start=start)
    else:
        generate(source, generation=GenerationOptions(), reading_options=lines, start=start)


def _kind_of(source: str) -> str:
    # Imported here: pyarrow takes 40 MB, and other commands don't need it.
    from promptstack.services.sources.inputs import looked_at  # noqa: PLC0415

    if not Path(source).is_file():
        raise InvalidInput(
            f"A batch is read twice, from a file; for {source!a:.200} use `runs generate` or "
            "`runs embed`."
        )
    _, records = looked_at(Path(source), Reading(Format.JSONL))
    return kind_of_requests(records)
