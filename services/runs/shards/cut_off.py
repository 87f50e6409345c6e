"""What ends a shard before all of its items are done: a cancel, a deadline, a stop."""

from promptstack.config.errors import PromptStackError
from promptstack.services.errors import DeadlinePassed
from promptstack.services.execution.job_context import JobContext


class CutOff:
    """Says whether calls may begin, and how the shard ends."""

    def __init__(self, job: JobContext) -> None:
        self._job = job
        self._error_of_run: PromptStackError | None = None
        self._is_run_over = False

    @property
    def may_begin(self) -> bool:
        """Whether calls may begin. If not, those under way still end, and are stored."""
        return not (self.is_urgent or self._error_of_run is not None)

    @property
    def is_urgent(self) -> bool:
        """Whether someone waits for this shard's slot: the worker stops, or the run is over."""
        return self._job.handle.is_closing or self._is_run_over

    def check(self) -> None:
        """Raise `HandedBack` if the job was cancelled, `DeadlinePassed` if it is too late."""
        if self._job.handle.is_cancelled:
            self._job.handle.hand_back()
        if self._job.handle.seconds_left() <= 0:
            raise DeadlinePassed("The run's deadline passed before all of its items were done.")

    def end_run(self, error: PromptStackError) -> None:
        """End the whole run with this error, once the calls under way are stored."""
        self._error_of_run = error

    def note_run_over(self) -> None:
        """Note that the run has ended, or was started anew for other shards to go on with."""
        self._is_run_over = True

    def conclude(self, *, is_done: bool) -> None:
        """Raise what ends the run, or hand an undone shard back if the worker stops."""
        if self._error_of_run is not None:
            raise self._error_of_run
        if self._job.handle.is_closing and not self._is_run_over and not is_done:
            self._job.handle.hand_back()
