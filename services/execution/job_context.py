"""A claimed job, as the handler of its kind gets it."""

from collections.abc import Callable

from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.models import JobState
from promptstack.services.execution.active_jobs import JobHandle
from promptstack.services.execution.retrying_ledger import RetryingLedger
from promptstack.services.jobs.progress import Progress, ProgressService

OnProgress = Callable[[Progress], None]
"""Hears of every step that others may see."""


class JobContext:
    """What a handler knows of its job, and may do with it."""

    def __init__(
        self,
        claim: Claim,
        handle: JobHandle,
        ledger: RetryingLedger,
        progress: ProgressService,
        on_progress: OnProgress,
    ) -> None:
        self.claim = claim
        self.handle = handle
        self.ledger = ledger
        self._progress = progress
        self._on_progress = on_progress

    def show(self, current: int = 0, total: int = 1) -> None:
        """Show to others how much of the job is done."""
        claim = self.claim
        shown = Progress(claim.job_id, JobState.RUNNING, current, total, claim.failures)
        self._progress.publish(shown)
        self._on_progress(shown)
