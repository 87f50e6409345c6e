"""Leaves a server that has failed alone for a moment, wherever Redis or the broker is asked."""

import math
import time
from collections.abc import Callable

REST_SECONDS = 2.0
"""Callers must not wait for a time-out each time."""


class CircuitBreaker:
    """Opens at a failure and closes by itself after a rest."""

    def __init__(
        self, rest_seconds: float = REST_SECONDS, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rest_seconds = rest_seconds
        self._clock = clock
        self._open_until = -math.inf
        self._has_failed = False

    def is_open(self) -> bool:
        """Whether the server is left alone now."""
        return self._clock() < self._open_until

    def trip(self) -> bool:
        """Note a failure. Returns whether it is the first since the last success."""
        is_first = not self._has_failed
        self._has_failed = True
        self._open_until = self._clock() + self._rest_seconds
        return is_first

    def reset(self) -> None:
        """Note a success."""
        self._has_failed = False
