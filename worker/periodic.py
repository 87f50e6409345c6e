"""A thread that repeats an action, whatever happens."""

import logging
import threading
import time
from collections.abc import Callable

from promptstack.config.errors import PromptStackError

logger = logging.getLogger(__name__)


class Periodic:
    """Runs `action` every `seconds` until stopped. Logs errors and goes on.

    With `idle_seconds`, it rests that long after a round, or until somebody calls `wake`.
    """

    def __init__(
        self,
        name: str,
        action: Callable[[], object],
        seconds: float,
        *,
        idle_seconds: float = 0.0,
    ) -> None:
        self._name = name
        self._action = action
        self._seconds = seconds
        self._idle_seconds = idle_seconds
        self._wanted = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin with the first run at once."""
        self._thread.start()

    def wake(self) -> None:
        """There is something to do. Cheap: whoever has something to do calls it each time."""
        if not self._wanted.is_set():
            self._wanted.set()

    def stop(self) -> None:
        """End after the current run."""
        self._stopped.set()
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            started = time.monotonic()
            self._wanted.clear()
            try:
                self._action()
            except PromptStackError as error:
                logger.warning("%s: %s", self._name, error)
            except Exception:
                # Without heartbeats, every job of this worker would be taken from it.
                logger.exception("%s met an unexpected error and goes on", self._name)
            took = time.monotonic() - started
            self._stopped.wait(max(0.0, self._seconds - took))
            if self._idle_seconds:
                self._wanted.wait(self._idle_seconds)
