"""Jobs, as the server shows them."""

from datetime import datetime
from typing import Literal

from promptstack_client.errors import NotEnded, Unsuccessful
from promptstack_client.models.base import HasId, Json, Model

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"] | str
JobKind = Literal["generation", "embedding"] | str
GOES_ON = frozenset({"queued", "running"})


class Waits(Model):
    """Why a job waits."""

    reason: Literal["limit", "turn", "circuit", "backoff", "no_worker", "queue"] | str
    detail: str = ""
    """A sentence for a person."""
    until: datetime | None = None


class Job(HasId):
    """One generation, or the embedding of one document."""

    kind: JobKind
    state: JobState
    provider: str
    model: str
    current: int = 0
    total: int = 1
    attempt: int = 0
    failures: int = 0
    max_retries: int = 0
    error_code: str | None = None
    error: str | None = None
    result: Json | None = None
    """What came out, once it has succeeded; `text` has the text of a generation."""
    tags: tuple[str, ...] = ()
    waits: Waits | None = None
    not_before: datetime | None = None
    expires_at: datetime | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether it is over, with a result or without."""
        return self.state not in GOES_ON

    @property
    def text(self) -> str:
        """The generated text. Raises `NotEnded` or `Unsuccessful` where there is none."""
        return str(self.checked()["text"])

    def checked(self) -> Json:
        """The result. Raises `NotEnded` or `Unsuccessful` where there is none."""
        if not self.ended:
            raise NotEnded(f"The job {self.id} is {self.state}; wait for its end.")
        if self.state != "succeeded" or self.result is None:
            raise Unsuccessful(f"The job {self.id}", self.state, self.error_code, self.error)
        return self.result
