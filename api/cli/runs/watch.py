"""A live screen of a run."""

import time
from datetime import timedelta
from uuid import UUID

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from promptstack.api.cli.terminal import cost, err, plural, stop
from promptstack.repositories.run_models import RunState
from promptstack.services.runs.progress import RunSnapshot
from promptstack.services.runs.rate import Rate
from promptstack.tasks.composition import PromptStack

LOOK_SECONDS = 0.25


def watch_run(stack: PromptStack, run_id: UUID, *, quiet: bool = False) -> RunSnapshot:
    """Show a run until it has ended; how it stands then."""
    snapshot = _look(stack, run_id)
    if quiet:
        while not snapshot.state.is_final:
            time.sleep(LOOK_SECONDS)
            snapshot = _look(stack, run_id)
        return snapshot
    rate = Rate()
    with Live(console=err, refresh_per_second=4, transient=False) as screen:
        while True:
            rate.add(time.monotonic(), snapshot.done)
            screen.update(_picture(snapshot, rate))
            if snapshot.state.is_final:
                break
            time.sleep(LOOK_SECONDS)
            snapshot = _look(stack, run_id)
    if not err.is_terminal:
        err.line()  # the screen ends its last line only on a terminal
    return snapshot


def _look(stack: PromptStack, run_id: UUID) -> RunSnapshot:
    snapshot = stack.run_progress.read(run_id)
    if snapshot is None:
        stop(f"there is no run {run_id}.")
    return snapshot


def _picture(snapshot: RunSnapshot, rate: Rate) -> Table:
    grid = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(1, snapshot.total), completed=snapshot.done, width=40)
    grid.add_row(str(snapshot.state), bar, f"{snapshot.succeeded:,} of {snapshot.total:,}")
    facts = [f"{snapshot.failed:,} failed", f"{snapshot.reused:,} reused"]
    facts += [plural(snapshot.calls, "call"), plural(snapshot.tokens, "token")]
    facts += [cost(snapshot.cost_usd, snapshot.unknown_cost)]
    speed = rate.per_second()
    if not snapshot.state.is_final:
        if speed:
            left = timedelta(seconds=round((snapshot.total - snapshot.done) / speed))
            facts += [f"{speed:,.0f}/s", f"ETA {left}"]
        if snapshot.calls:
            facts.append(f"limiter wait {snapshot.limiter_wait_seconds / snapshot.calls:.2f} s")
        facts.append(plural(snapshot.workers, "worker"))
    whole = Table.grid()
    whole.add_row(grid)
    whole.add_row("  ".join(facts))
    if snapshot.state is RunState.FINALIZING:
        whole.add_row("All items are done; the search index is being built.")
    return whole
