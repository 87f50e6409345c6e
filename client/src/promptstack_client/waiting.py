"""Waits for the end of something, without asking all the time."""

import time
from typing import Any, Protocol, TypeVar

from promptstack_client.calls import Call
from promptstack_client.errors import WaitTimedOut
from promptstack_client.sending import Flow

LONGEST_WAIT = 30.0
"""Seconds that the server is asked to hold its answer back."""
MARGIN = 15.0
"""Seconds that an answer which was held back may take beyond that."""
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0


class Ends(Protocol):
    """Something that goes on for a while."""

    @property
    def ended(self) -> bool: ...

    @property
    def state(self) -> str: ...


T = TypeVar("T", bound=Ends)


def held(wait: float | None) -> dict[str, Any]:
    """The fields of `Asked` that have an answer held back until an end, for so long at most."""
    return {} if wait is None else {"query": {"wait": wait}, "timeout": wait + MARGIN}


def until_ended(
    call: Call[Any], timeout: float | None, what: str, *, is_held: bool = True
) -> Flow[Any]:
    """Ask until it has ended. Raises `WaitTimedOut`.

    `is_held` says that the server can hold its answer back until then.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = FIRST_PAUSE
    while True:
        left = LONGEST_WAIT if deadline is None else max(deadline - time.monotonic(), 0.0)
        asked = time.monotonic()
        wait = min(left, LONGEST_WAIT)
        waiting = call.continued(wait=round(wait, 3), timeout=wait + MARGIN)
        thing = yield waiting if is_held else call
        if thing.ended:
            return thing
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            raise WaitTimedOut(f"{what} has not ended in {timeout:g} s; it is {thing.state}.")
        if now - asked < 1.0:
            # The server did not hold the answer back: it can't, or too many wait there.
            yield pause if deadline is None else min(pause, deadline - now)
            pause = min(pause * 2, LONGEST_PAUSE)
