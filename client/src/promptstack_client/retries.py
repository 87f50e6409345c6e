"""Whether and when a request is sent again."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

from promptstack_client.calls import Call
from promptstack_client.errors import ApiError, ConnectionFailed, PromptStackError

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0
LONGEST_RETRY_AFTER = 60.0
"""Who is told to wait longer than this is told the error: they have better things to do."""
GOOD_SECONDS = 5.0
"""A connection that stood for so long was a good one."""
NOT_DONE = frozenset({429, 503})
"""The server says that it has done nothing."""
PERHAPS_SOON = frozenset({409})
"""The server has done nothing, and says when it may where the state is over soon."""
PERHAPS_DONE = frozenset({502, 504})
"""A proxy says that it had no answer of the server."""


class Tries:
    """Counts the tries of one call, and says how long to wait for the next one."""

    def __init__(self, max_retries: int) -> None:
        self._max = max_retries
        self._failed = 0

    def pause_after(self, error: PromptStackError, call: Call[object]) -> float:
        """Seconds until the next try. Raises the error where there is to be none."""
        self._failed += 1
        if self._failed > self._max or not may_repeat(error, call):
            raise error
        told = error.retry_after if isinstance(error, ApiError) else None
        if told is None:
            return backoff(self._failed)
        if told > LONGEST_RETRY_AFTER:
            raise error
        # Not all at the same moment: everybody was told the same.
        return told + backoff(self._failed) / 2

    def went_well(self) -> None:
        """Begin to count anew: there was progress."""
        self._failed = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count anew where a connection has stood for a while: proxies cut off even good ones."""
        began = time.monotonic()
        try:
            yield
        except ConnectionFailed:
            if time.monotonic() - began > GOOD_SECONDS:
                self.went_well()
            raise


def may_repeat(error: PromptStackError, call: Call[object]) -> bool:
    """Whether the same request may go well later, and does nothing twice."""
    if isinstance(error, ConnectionFailed):
        return call.repeatable or not error.was_sent
    if isinstance(error, ApiError):
        is_lost = error.status in PERHAPS_DONE and error.is_foreign
        is_soon = error.status in PERHAPS_SOON and error.retry_after is not None
        return error.status in NOT_DONE or is_soon or (is_lost and call.repeatable)
    return False


def backoff(failures: int) -> float:
    """Twice as long after each failure, within a half and the whole, up to a bound."""
    longest: float = min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads callers, keeps no secret
