"""The root of every error that Prompt Stack raises on purpose."""

from enum import StrEnum
from typing import ClassVar


class Reach(StrEnum):
    """Whom a failure concerns. This decides what happens to the other texts of the same call."""

    INPUT = "input"
    """One input of the call may be the cause: the call is bisected to find it."""
    EITHER = "either"
    """The server may be the cause. If retries do not help, one input may be: bisect."""
    SERVER = "server"
    """All calls to the server are affected; no input is the cause."""
    RUN = "run"
    """All calls of the run would fail so: the run ends."""

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
    """A stable name for programs."""

    transient: ClassVar[bool] = False
    """Whether the same work may succeed later without anyone changing it."""

    reach: ClassVar[Reach] = Reach.INPUT
    """Whom it concerns. By default one input, as an unexpected error may come from it."""

    counts_as_failure: ClassVar[bool] = True
    """Whether it uses up one of the job's retries."""

    most_tries: ClassVar[int | None] = None
    """The most tries where each failed one may be billed."""

    backs_off: ClassVar[bool] = True
    """Whether waits grow with each try. They don't where `retry_after` is exact."""

    billed: ClassVar[bool | None] = None
    """Whether the provider bills the failed call; None if unknown."""

    falls_back: ClassVar[bool] = False
    """Whether a job asks its next provider, since this one can answer nobody now."""

    def __init__(
        self, message: str, *, detail: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.detail = detail
        self.retry_after = retry_after
        """Seconds to wait before the next try, where the provider or the limiter said so."""

    @property
    def is_wait(self) -> bool:
        """Whether the work only waits for room, which uses up no retry."""
        return self.transient and not self.counts_as_failure

    def for_operators(self) -> str:
        """The sentence, with more detail for those who run the servers."""
        return str(self)

    def add(self, sentence: str) -> None:
        """Add facts that were unknown where the error was raised."""
        self.args = (f"{self} {sentence}",)


class ConfigurationError(PromptStackError):
    """A setting is missing or wrong."""

    code = "CONFIGURATION_ERROR"
