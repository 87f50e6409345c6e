"""Watching a run: a live screen, from Redis and, where it knows nothing, from the ledger."""

import time
from collections import deque
from datetime import timedelta
from uuid import UUID

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from promptstack.api.cli.terminal import cost, err, plural, stop
from promptstack.repositories.runs.models import RunState
from promptstack.services.runs.progress import RunStanding
from promptstack.tasks.composition import PromptStack

LOOK_SECONDS = 0.25
RATE_SECONDS = 15.0
"""The rate is that of so long: a run's begin says little of its end."""


class Rate:
    """Items a second, of late."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, now: float, done: int) -> None:
        """Note how many are done."""
        self._seen.append((now, done))
        while now - self._seen[0][0] > RATE_SECONDS:
            self._seen.popleft()

    def per_second(self) -> float | None:
        """None where too little has been seen."""
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        return (last - first) / (ended - began) if ended - began >= 1.0 else None


def watch_run(stack: PromptStack, run_id: UUID, *, quiet: bool = False) -> RunStanding:
    """Show a run until it has ended; how it stands then."""
    standing = _look(stack, run_id)
    if quiet:
        while not standing.state.is_final:
            time.sleep(LOOK_SECONDS)
            standing = _look(stack, run_id)
        return standing
    rate = Rate()
    with Live(console=err, refresh_per_second=4, transient=False) as screen:
        while True:
            rate.add(time.monotonic(), standing.done)
            screen.update(_picture(standing, rate))
            if standing.state.is_final:
                break
            time.sleep(LOOK_SECONDS)
            standing = _look(stack, run_id)
    if not err.is_terminal:
        err.line()  # the screen ends its last line only on a terminal
    return standing


def _look(stack: PromptStack, run_id: UUID) -> RunStanding:
    standing = stack.run_progress.read(run_id)
    if standing is None:
        stop(f"there is no run {run_id}.")
    return standing


def _picture(standing: RunStanding, rate: Rate) -> Table:
    grid = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(1, standing.total), completed=standing.done, width=40)
    grid.add_row(str(standing.state), bar, f"{standing.succeeded:,} of {standing.total:,}")
    facts = [f"{standing.failed:,} failed", f"{standing.reused:,} reused"]
    facts += [plural(standing.calls, "call"), plural(standing.tokens, "token")]
    facts += [cost(standing.cost_usd, standing.unknown_cost)]
    speed = rate.per_second()
    if not standing.state.is_final:
        if speed:
            left = timedelta(seconds=round((standing.total - standing.done) / speed))
            facts += [f"{speed:,.0f}/s", f"ETA {left}"]
        if standing.calls:
            facts.append(f"limiter wait {standing.limiter_wait_seconds / standing.calls:.2f} s")
        facts.append(plural(standing.workers, "worker"))
    whole = Table.grid()
    whole.add_row(grid)
    whole.add_row("  ".join(facts))
    if standing.state is RunState.FINALIZING:
        whole.add_row("All items are done; the search index is being built.")
    return whole
