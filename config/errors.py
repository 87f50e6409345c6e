"""The root of every error that Prompt Stack raises on purpose."""

from enum import StrEnum
from typing import ClassVar


class Reach(StrEnum):
    """Whom a failure concerns. This decides what happens to the other texts of the same call."""

    INPUT = "input"
    """One input of the call may be its cause: the others are asked apart from it."""
    EITHER = "either"
    """The server's trouble, until it is steady; then it may be one input's."""
    SERVER = "server"
    """Whoever asks now: no input is its cause."""
    RUN = "run"
    """Every other call of the run would meet the same: it ends the run."""

    @property
    def is_bisected(self) -> bool:
        """Whether a call of several inputs is made again in two halves, to find the cause."""
        return self in {Reach.INPUT, Reach.EITHER}


class PromptStackError(Exception):
    """Something went wrong that we can explain.

    `str(error)` is a sentence for a person: what happened, why, what to do. It never holds a
    prompt, an answer or a key, so it may go to logs, Redis and Flower. What a provider said in its
    own words goes to `detail`, which is stored in the ledger only.
    """

    code: ClassVar[str] = "INTERNAL_ERROR"
    """Stable name for programs."""

    transient: ClassVar[bool] = False
    """Whether the same work may succeed later without anyone changing it."""

    reach: ClassVar[Reach] = Reach.INPUT
    """Whom it concerns. An error that nobody expected may be of this input only."""

    counts_as_failure: ClassVar[bool] = True
    """Whether it uses up one of the job's retries."""

    most_tries: ClassVar[int | None] = None
    """How often work is tried that always ends so, where each try may be paid for in vain."""

    backs_off: ClassVar[bool] = True
    """Whether the wait grows with each try; not where `retry_after` says when there is room."""

    billed: ClassVar[bool | None] = None
    """Whether the provider bills a call that ends so; None where nobody knows."""

    falls_back: ClassVar[bool] = False
    """Whether a job asks its next provider: this one can't answer anybody now."""

    def __init__(
        self, message: str, *, detail: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.detail = detail
        self.retry_after = retry_after
        """Seconds before which a new try is pointless, where somebody told us."""

    @property
    def is_wait(self) -> bool:
        """Whether the work only waits until there is room, which uses up no retry."""
        return self.transient and not self.counts_as_failure

    def for_operators(self) -> str:
        """The sentence, with more where it is for those who run the servers."""
        return str(self)

    def add(self, sentence: str) -> None:
        """Add facts that were unknown where the error was raised."""
        self.args = (f"{self} {sentence}",)


class ConfigurationError(PromptStackError):
    """A setting is missing or wrong."""

    code = "CONFIGURATION_ERROR"
