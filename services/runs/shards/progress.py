"""How far a shard is, for everyone to see."""

from collections.abc import Callable

from promptstack.repositories.run_models import Run
from promptstack.services.execution.job_context import JobContext

SHOW_SECONDS = 1.0


class ShardProgress:
    """Counts a shard's items, and shows the shard and its run."""

    def __init__(
        self, job: JobContext, show_run: Callable[[Run], None], clock: Callable[[], float]
    ) -> None:
        self._job = job
        self._show_run = show_run
        self._clock = clock
        self._shown_at = 0.0
        self.total = 0
        self.done = 0

    @property
    def is_done(self) -> bool:
        """Whether every item has ended."""
        return self.done >= self.total

    @property
    def counts(self) -> dict[str, int]:
        """The shard's result: only numbers, so that everyone may see it."""
        return {"items": self.total, "done": self.done}

    def add(self, ended: int, run: Run | None) -> None:
        """Count items that ended; show the run, and now and then the shard."""
        self.done += ended
        if run is not None:
            self._show_run(run)
        now = self._clock()
        if now - self._shown_at >= SHOW_SECONDS:
            self._shown_at = now
            self._job.show(self.done, self.total)
