"""Writing what a run has produced."""

from pathlib import Path
from uuid import UUID

from api.cli.terminal import err, plural
from repositories.run_models import RunKind
from services.export.items import ExportFormat
from tasks.composition import PromptStack

STANDARD_OUTPUT = Path("-")


def write_output(
    stack: PromptStack,
    run_id: UUID,
    path: Path,
    format_: ExportFormat | None = None,
    *,
    with_input: bool = False,
) -> None:
    """Write results in the order of the inputs, and failures beside them."""
    # Here, as it takes a while to load and most commands write nothing.
    from services.export.results import export  # noqa: PLC0415

    run = stack.runs.get(run_id)
    summary = export(
        path,
        stack.run_results.produced(run_id, with_input=with_input),
        stack.run_results.failed(run_id),
        format=format_,
        dimensions=stack.run_results.dimensions(run_id),
        count=run.succeeded if run.state.is_final and run.kind is RunKind.EMBEDDING else None,
        with_input=with_input,
    )
    if path == STANDARD_OUTPUT:
        return
    files = [str(summary.path)]
    files += [str(one) for one in (summary.ids_path, summary.errors_path) if one is not None]
    err.print(
        f"Wrote {plural(summary.items, 'result')} and {plural(summary.errors, 'failure')}: "
        f"{', '.join(files)}",
        markup=False,
    )
