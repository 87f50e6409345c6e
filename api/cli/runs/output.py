"""Writes the results of a run."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from promptstack.api.cli.terminal import err, plural
from promptstack.repositories.run_models import RunKind
from promptstack.services.errors import InvalidInput
from promptstack.services.export.items import ExportFormat, ExportSummary
from promptstack.services.export.paths import STANDARD_OUTPUT, check_output
from promptstack.tasks.composition import PromptStack

Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write to .jsonl, .parquet, .npy or .csv.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Take the place of files that are there already.")
]
Detach = Annotated[bool, typer.Option("--detach", help="Don't wait for the end.")]


@dataclass(frozen=True)
class Target:
    """Where results go; None: nowhere."""

    path: Path | None
    format: ExportFormat | None = None
    overwrite: bool = False

    @property
    def is_standard_output(self) -> bool:
        """Whether results go where commands print."""
        return self.path == STANDARD_OUTPUT

    def check(
        self,
        kind: RunKind,
        source: str | None = None,
        *,
        detach: bool = False,
        run: UUID | None = None,
    ) -> None:
        """Raise `InvalidInput` for an output that can't be written, or would overwrite something.

        It is called before anything is paid. `run` is None before the run exists.
        """
        if self.path is None:
            return
        if detach:
            raise InvalidInput(
                "With --detach nobody waits for results, so none would be written. Leave -o out, "
                f"and write them later: promptstack runs export {run or 'RUN'} -o "
                f"{shlex.quote(str(self.path))}. Nothing was done."
            )
        try:
            check_output(
                self.path,
                self.format,
                has_vectors=kind is RunKind.EMBEDDING,
                source=source,
                overwrite=self.overwrite,
            )
        except InvalidInput as error:
            raise InvalidInput(f"{error} Nothing was done.") from error


def write_output(
    stack: PromptStack,
    run_id: UUID,
    target: Target,
    *,
    with_input: bool = False,
    quiet: bool = False,
) -> ExportSummary | None:
    """Write results in the order of the inputs, and failures beside them. Raises `InvalidInput`."""
    # Imported here: it takes a while to load, and most commands write nothing.
    from promptstack.services.export.results import export  # noqa: PLC0415

    if target.path is None:
        return None
    run = stack.runs.get(run_id)
    has_vectors = run.kind is RunKind.EMBEDDING
    # Checked again: something may have been written there during the run.
    check_output(target.path, target.format, has_vectors=has_vectors, overwrite=target.overwrite)
    summary = export(
        target.path,
        stack.run_results.produced(run_id, with_input=with_input),
        stack.run_results.failed(run_id),
        format=target.format,
        dimensions=stack.run_results.dimensions(run_id),
        count=run.succeeded if run.state.is_final and has_vectors else None,
        with_input=with_input,
        keep_old=True,
        guard_formulas=stack.settings.csv_guard_formulas,
    )
    if not target.is_standard_output and not quiet:
        _tell(summary)
    if summary.unwritten:
        why = f"{summary.errors_path} says why" if summary.errors_path else "a file will say why"
        err.print(
            f"promptstack: {plural(summary.unwritten, 'result')} could not be written; {why}. "
            "All are kept: JSON Lines hold the most.",
            style="red",
            markup=False,
        )
    return summary


def _tell(summary: ExportSummary) -> None:
    failures = plural(summary.errors, "failure")
    if not summary.is_written:
        err.print(f"There are no results: {summary.path} was not written.", markup=False)
        if summary.errors_path is not None:
            err.print(f"Wrote {failures}: {summary.errors_path}", markup=False)
        return
    files = [str(summary.path)]
    files += [str(one) for one in (summary.ids_path, summary.errors_path) if one is not None]
    err.print(
        f"Wrote {plural(summary.items, 'result')} and {failures}: {', '.join(files)}",
        markup=False,
    )
