"""Options of the commands that start a run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from promptstack.api.cli.options.jobs import Collection, ExpiresIn, MaxRetries
from promptstack.api.cli.options.values import dollars_of, seconds_of
from promptstack.api.cli.runs.output import Detach, Output, Overwrite, Target
from promptstack.api.cli.terminal import JsonFlag
from promptstack.services.runs.intake.ingest import Intake
from promptstack.services.runs.intake.new_run import RunKeywords
from promptstack.services.sources.reading import Format, Reading
from promptstack.services.text import printable_path

LONGEST_NAME = 200


@dataclass(frozen=True)
class ReadingOptions:
    """Which fields of a source are read."""

    format_: Annotated[
        Format | None, typer.Option("--format", help="Where the name's suffix doesn't tell.")
    ] = None
    text_column: Annotated[
        str | None, typer.Option(help="Field of the text; `text`, else `prompt`.")
    ] = None
    id_column: Annotated[
        str | None, typer.Option(help="Field of the id; `custom_id`, else `id`.")
    ] = None
    columns: Annotated[
        str | None, typer.Option(help="Fields to keep as metadata, with commas; all when left out.")
    ] = None

    def reading(self, **more: Any) -> Reading:
        """How to read a source, with the other options of a command."""
        names = (self.columns or "").split(",")
        columns = None if self.columns is None else tuple(name.strip() for name in names if name)
        return Reading(
            format=self.format_,
            text_column=self.text_column,
            id_column=self.id_column,
            columns=columns,
            **more,
        )


@dataclass(frozen=True)
class StartOptions:
    """The provider, the options of the run, and what is done with its results."""

    provider: Annotated[str | None, typer.Option(help="Who is asked.")] = None
    model: Annotated[str | None, typer.Option(help="The provider's default when left out.")] = None
    in_flight: Annotated[
        int | None, typer.Option(help="Calls under way at once in each worker.")
    ] = None
    max_cost: Annotated[
        str | None, typer.Option(metavar="DOLLARS", help="The run stops before it costs more.")
    ] = None
    max_retries: MaxRetries = None
    expires_in: ExpiresIn = None
    name: Annotated[str, typer.Option(help="A name to know the run by.")] = ""
    tag: Annotated[
        list[str] | None, typer.Option(help="A word to find it by; may be given again.")
    ] = None
    collection: Collection = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check, count and estimate.")] = (
        False
    )
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on without inputs that are bad.")
    ] = False
    detach: Detach = False
    output: Output = None
    overwrite: Overwrite = False
    as_json: JsonFlag = False

    @property
    def target(self) -> Target:
        """Where results go."""
        return Target(self.output, overwrite=self.overwrite)

    def keywords(
        self, source: str, reading: Reading, on_progress: Callable[[Intake], None]
    ) -> RunKeywords:
        """The options of the run. Raises `InvalidInput`."""
        return {
            "provider": self.provider,
            "model": self.model,
            "collection": self.collection,
            "name": (self.name or printable_path(source))[-LONGEST_NAME:],
            "tags": self.tag or [],
            "in_flight": self.in_flight,
            "max_cost_usd": dollars_of(self.max_cost),
            "max_retries": self.max_retries,
            "expires_in": seconds_of(self.expires_in),
            "reading": reading,
            "on_progress": on_progress,
        }
