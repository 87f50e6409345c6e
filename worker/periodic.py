"""A thread that repeats an action, whatever happens."""

import logging
import threading
import time
from collections.abc import Callable

from promptstack.config.errors import PromptStackError

logger = logging.getLogger(__name__)


class Periodic:
    """Runs `action` every `seconds` until stopped. Logs errors and goes on."""

    def __init__(self, name: str, action: Callable[[], object], seconds: float) -> None:
        self._name = name
        self._action = action
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin with the first run at once."""
        self._thread.start()

    def stop(self) -> None:
        """End after the current run."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            started = time.monotonic()
            try:
                self._action()
            except PromptStackError as error:
                logger.warning("%s: %s", self._name, error)
            except Exception:
                # Without heartbeats, every job of this worker would be taken from it.
                logger.exception("%s met an unexpected error and goes on", self._name)
            took = time.monotonic() - started
            self._stopped.wait(max(0.0, self._seconds - took))
