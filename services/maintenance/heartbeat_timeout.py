"""How long a worker must be silent to count as dead.

While PostgreSQL is down, hangs or has lost its clock, no worker can send a heartbeat. Such a blind
span shows as a gap between two rounds of liveness, which all workers note in one row. So a new
process knows what the others have seen, and a killed worker is missed in time while others come
and go.
"""

import math
from collections.abc import Sequence

Span = tuple[float, float]
"""From and to, in seconds of the ledger's clock. Spans are in order and don't overlap."""

REMEMBERED_SECONDS = 600.0
"""No worker that was alive since is judged by older spans."""


def blind_spans(
    known: Sequence[Span], last_round: float | None, now: float, longest_gap: float
) -> list[Span]:
    """Add what nobody saw since the last round; forget what is long past."""
    if last_round is None or now < last_round:
        # Nobody has looked yet, or the clock was put back: what was seen before tells nothing.
        return [(-math.inf, now)]
    spans = [span for span in known if now - span[1] < REMEMBERED_SECONDS]
    return [*spans, (last_round, now)] if now - last_round >= longest_gap else spans


def heartbeat_timeout(spans: Sequence[Span], now: float, lost_seconds: float) -> float | None:
    """Return the silence that proves a death, in seconds; None where none does yet.

    Heartbeats could be sent during `lost_seconds` of it, and during a third of that since the last
    blind span: the living need a moment to find the ledger again.
    """
    if spans and now - spans[-1][1] < lost_seconds / 3:
        return None
    # Count back from now the time in which somebody looked.
    missing = lost_seconds
    seen_until = now
    for begin, end in reversed(spans):
        seen = seen_until - end
        if seen >= missing:
            break
        missing -= seen
        seen_until = begin
    timeout = now - (seen_until - missing)
    return timeout if math.isfinite(timeout) else None
