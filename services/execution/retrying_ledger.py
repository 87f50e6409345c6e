"""Transactions that wait while PostgreSQL is away."""

import logging
import math
import time
from collections.abc import Callable
from typing import TypeVar

from promptstack.repositories.errors import (
    LedgerConflict,
    LedgerReadOnly,
    LedgerRefused,
    LedgerSlow,
    TransientLedgerError,
)
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.execution.active_jobs import ActiveJobs

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.5
SAY_AGAIN_SECONDS = 30.0
MAX_REFUSALS = 60
"""Times, half a second apart, that one change may be refused by a database that is up."""
SLOW_STEPS = 6
"""For how many of these a transaction counts that the database ended as it took too long: each
takes some seconds, and one that is too large is so every time."""
STOP_PATIENCE_SECONDS = 8.0
"""How long a worker that stops still waits for PostgreSQL with what it has to store."""

T = TypeVar("T")


class RetryingLedger:
    """The ledger as a worker uses it: nothing that is known here may get lost."""

    def __init__(
        self,
        ledger: Ledger,
        running: ActiveJobs,
        *,
        retry_seconds: float = RETRY_SECONDS,
        max_refusals: int = MAX_REFUSALS,
    ) -> None:
        self._ledger = ledger
        self._running = running
        self._retry_seconds = retry_seconds
        self._max_refusals = max_refusals

    def write(self, write: Callable[[UnitOfWork], T]) -> T:
        """Run one transaction, and wait while PostgreSQL is away; what `write` returns.

        Least of all an answer that was paid for may get lost, and no other job could run
        meanwhile. `write` may run twice, where a connection broke in the middle of a commit.
        Raises `TransientLedgerError` when the worker stops, and `LedgerRefused` when the database
        is up and refuses just this.
        """
        refusals = 0
        said_at = -math.inf
        while True:
            try:
                with self._ledger.transaction() as unit:
                    return write(unit)
            except TransientLedgerError as error:
                if self._running.seconds_since_stop() > STOP_PATIENCE_SECONDS:
                    raise
                refusals += SLOW_STEPS if isinstance(error, LedgerSlow) else self._is_refused(error)
                if refusals > self._max_refusals:
                    raise LedgerRefused(
                        f"The database is up but refused the same change again and again: {error}",
                        detail=error.detail,
                    ) from error
                if time.monotonic() - said_at > SAY_AGAIN_SECONDS:
                    logger.warning("a job waits for the ledger: %s", error)
                    said_at = time.monotonic()
                time.sleep(self._retry_seconds)

    def _is_refused(self, error: TransientLedgerError) -> bool:
        """Whether the error is about the change itself, and not about the whole database."""
        if isinstance(error, LedgerConflict):
            return True
        if isinstance(error, LedgerReadOnly):
            return False
        try:
            self._ledger.ping()
        except TransientLedgerError:
            return False
        return True
