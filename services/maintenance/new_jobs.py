"""Hears of jobs that were enqueued in SQL, and of events of webhooks, so that they leave at once.

What it misses, the outbox finds: it looks every second anyway.
"""

import logging
import threading
import time
from collections.abc import Callable

from promptstack.config.names import NEW_JOBS_CHANNEL
from promptstack.repositories.session import Ledger

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""Between two looks whether this worker stops."""
PING_SECONDS = 30.0
"""Between two looks whether the connection lives."""


class NewJobs:
    """Waits for PostgreSQL's word of new jobs."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._stopped = threading.Event()

    def hear(self, tell: Callable[[], None]) -> None:
        """Call `tell` whenever there are new jobs, until `stop`. Raises `LedgerUnavailable`."""
        with self._ledger.listening(NEW_JOBS_CHANNEL) as listener:
            if listener.is_deaf:
                logger.info("jobs enqueued in SQL are looked for: a pooler passes no NOTIFY on")
                self._stopped.wait()
                return
            tell()  # for those that came before
            asked_at = time.monotonic()
            while not self._stopped.is_set():
                if listener.wait(LOOK_SECONDS):
                    tell()
                elif time.monotonic() - asked_at > PING_SECONDS:
                    listener.ping()
                    asked_at = time.monotonic()

    def stop(self) -> None:
        """Let `hear` return."""
        self._stopped.set()
