"""A claimed job, as its handler gets it."""

from collections.abc import Callable

from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.models import JobState
from promptstack.services.execution.active_jobs import JobHandle
from promptstack.services.execution.retrying_ledger import RetryingLedger
from promptstack.services.jobs.progress import Progress, ProgressService
from promptstack.services.streams.writer import TextStream

OnProgress = Callable[[Progress], None]
"""Receives every step of progress."""


class JobContext:
    """A claimed job and what its handler needs: its handle, the ledger, and progress."""

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
        self.text: TextStream | None = None
        """Where its text is shown as it is produced, if it asked for that."""

    def checked(self, claim: Claim) -> None:
        """Go on with the claim as the checks have left it."""
        self.claim = claim
        self.handle.claimed(claim)

    def show(self, current: int = 0, total: int = 1) -> None:
        """Show how much of the job is done."""
        claim = self.claim
        shown = Progress(
            claim.job_id, JobState.RUNNING, current, total, claim.failures, attempt=claim.attempt
        )
        self._progress.publish(shown)
        self._on_progress(shown)
