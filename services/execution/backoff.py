"""How long a job waits before its next try."""

import random
from collections.abc import Callable
from dataclasses import dataclass

MAX_EXPONENT = 30
"""Keeps 2**n finite; the maximum wait is reached long before."""


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff with full jitter (AWS Architecture Blog, 2015).

    Jitter spreads tries that failed together; without it they would come back together.
    """

    base_seconds: float
    max_seconds: float
    uniform: Callable[[float, float], float] = random.uniform

    def delay(self, failed_tries: int, retry_after: float | None = None) -> float:
        """Seconds to wait after `failed_tries` (1 or more), never less than `retry_after`."""
        exponent = min(failed_tries - 1, MAX_EXPONENT)
        bound = min(self.max_seconds, self.base_seconds * 2**exponent)
        return max(self.uniform(0.0, bound), retry_after or 0.0)
