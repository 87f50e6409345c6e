"""How long a worker must be silent to count as dead, where the ledger itself may have been away.

While PostgreSQL was down, hung, or without its clock, nobody could send a heartbeat. Such a blind
span shows as a gap between two rounds of the reconcilers, which all note theirs in one place: so
a new process knows what the others have seen, and a worker that is killed is missed in time also
while others come and go.
"""

import math
from collections.abc import Sequence

Span = tuple[float, float]
"""From and to, in seconds of the ledger's clock. Spans are in order and don't overlap."""

REMEMBERED_SECONDS = 600.0
"""Older spans matter to no worker that was alive since."""


def blind_spans(
    known: Sequence[Span], last_round: float | None, now: float, longest_gap: float
) -> list[Span]:
    """Add what nobody saw since the last round; forget what is long past."""
    if last_round is None or now < last_round:
        # Nobody has ever looked, or the clock was put back: what was seen before tells nothing.
        return [(-math.inf, now)]
    spans = [span for span in known if now - span[1] < REMEMBERED_SECONDS]
    return [*spans, (last_round, now)] if now - last_round >= longest_gap else spans


def silence_of_the_dead(spans: Sequence[Span], now: float, lost_seconds: float) -> float | None:
    """Return the shortest silence that proves a death, in seconds; None where none does yet.

    Heartbeats could be sent during `lost_seconds` of it, and a third of that since the ledger was
    last away: the living need a moment to find it again.
    """
    if spans and now - spans[-1][1] < lost_seconds / 3:
        return None
    # Back from now, over the times when somebody looked.
    missing = lost_seconds
    seen_until = now
    for begin, end in reversed(spans):
        seen = seen_until - end
        if seen >= missing:
            break
        missing -= seen
        seen_until = begin
    silence = now - (seen_until - missing)
    return silence if math.isfinite(silence) else None
