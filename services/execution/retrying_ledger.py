"""Transactions that wait while PostgreSQL is away."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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

THREADS = 8
"""Transactions at once for the jobs on the event loop; most of their steps share one anyway
(`group_commit`)."""

T = TypeVar("T")


@dataclass
class _Troubles:
    """What one transaction has met so far."""

    refusals: int = 0
    said_at: float = -math.inf


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
        self._threads = ThreadPoolExecutor(THREADS, "ledger")
        self._retry_seconds = retry_seconds
        self._max_refusals = max_refusals

    def write(self, write: Callable[[UnitOfWork], T]) -> T:
        """Run one transaction, and wait while PostgreSQL is away; what `write` returns.

        Least of all an answer that was paid for may get lost, and no other job could run
        meanwhile. `write` may run twice, where a connection broke in the middle of a commit.
        Raises `TransientLedgerError` when the worker stops, and `LedgerRefused` when the database
        is up and refuses just this. For threads: this blocks.
        """
        troubles = _Troubles()
        while True:
            for written in self._try(write, troubles):
                return written
            time.sleep(self._retry_seconds)

    async def write_async(self, write: Callable[[UnitOfWork], T]) -> T:
        """Do what `write` does, for the event loop: another thread runs the transaction."""
        troubles = _Troubles()
        loop = asyncio.get_running_loop()
        while True:
            for written in await loop.run_in_executor(self._threads, self._try, write, troubles):
                return written
            await asyncio.sleep(self._retry_seconds)

    def close(self) -> None:
        """End the threads, once their transactions have ended."""
        self._threads.shutdown()

    def _try(self, write: Callable[[UnitOfWork], T], troubles: "_Troubles") -> Sequence[T]:
        """Run the transaction. Returns what `write` returns; nothing where it is to be tried again.

        Raises the error that ends the tries.
        """
        try:
            with self._ledger.transaction() as unit:
                return [write(unit)]
        except TransientLedgerError as error:
            if self._running.seconds_since_stop() > STOP_PATIENCE_SECONDS:
                raise
            is_slow = isinstance(error, LedgerSlow)
            troubles.refusals += SLOW_STEPS if is_slow else self._is_refused(error)
            if troubles.refusals > self._max_refusals:
                raise LedgerRefused(
                    f"The database is up but refused the same change again and again: {error}",
                    detail=error.detail,
                ) from error
            if time.monotonic() - troubles.said_at > SAY_AGAIN_SECONDS:
                logger.warning("a job waits for the ledger: %s", error)
                troubles.said_at = time.monotonic()
            return []

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
