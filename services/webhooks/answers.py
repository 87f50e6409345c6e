"""What receivers of events answer."""

from dataclasses import dataclass

GONE = 410


@dataclass(frozen=True)
class Answer:
    """What came of one request."""

    status: int | None
    """HTTP's; None where there was no answer."""
    error: str | None
    """A sentence; None if it was taken. It quotes nothing of the address beyond its host."""
    seconds: float
    retry_after: float | None = None
    """How long the receiver wants to be left alone."""
    is_ours: bool = False
    """Whether nothing was sent, and not by any fault of the receiver."""

    @property
    def is_taken(self) -> bool:
        """Whether the receiver has the event."""
        return self.error is None

    @property
    def is_gone(self) -> bool:
        """Whether the receiver says that it wants no more events, ever."""
        return self.status == GONE
