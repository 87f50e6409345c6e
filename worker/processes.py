"""Several workers of one command: forked, so that each starts at once, and again when it ends."""

import logging
import os
import select
import signal
import time
from collections.abc import Callable
from types import FrameType

from config.parent import STDIN, end_with

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.05
SHORT_LIFE_SECONDS, REST_SECONDS = 2.0, 1.0
"""What ends so soon is started again only after a rest."""
WRONG_SETTINGS = 2
"""The exit code of a worker that can't start at all; starting it again would not help."""


class WorkerProcesses:
    """Forks workers and keeps them running until it is told to stop.

    What all of them need is imported before: two seconds of processor that a new one saves. No
    thread may run here, nor any connection be open: a fork would copy them by half.
    """

    def __init__(self, count: int, work: Callable[[], int], *, with_parent: bool) -> None:
        """Take `work`, which runs one worker in its process; `with_parent`, end when stdin does."""
        self._count = count
        self._work = work
        self._with_parent = with_parent
        self._started: dict[int, float] = {}
        """When each child was started, by its pid."""
        self._rest_until = 0.0
        self._is_stopping = False
        self._exit_code = 0

    def run(self) -> int:
        """Work until SIGTERM or Ctrl-C, which the workers are told of; the exit code."""
        self._theirs, self._ours = os.pipe()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        while self._started or not self._is_stopping:
            self._start_missing()
            time.sleep(LOOK_SECONDS)
            self._reap()
            if self._with_parent and not self._is_stopping and _is_closed(STDIN):
                self._stop(signal.SIGTERM, None)
        return self._exit_code

    def _start_missing(self) -> None:
        while len(self._started) < self._count and not self._is_stopping:
            if time.monotonic() < self._rest_until:
                return
            pid = os.fork()
            if pid == 0:
                self._become_worker()
            self._started[pid] = time.monotonic()

    def _become_worker(self) -> None:
        """Be the child: this never returns."""
        code = 1
        try:
            os.close(self._ours)
            # Ctrl-C reaches the one that forked us alone, which tells us in order.
            os.setpgid(0, 0)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            end_with(self._theirs)
            code = self._work()
        finally:
            logging.shutdown()
            os._exit(code)

    def _reap(self) -> None:
        while self._started:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            lived = time.monotonic() - self._started.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            if self._is_stopping:
                # One that had only begun to start dies of the signal itself, and has nothing to do.
                self._exit_code = self._exit_code or (0 if code == -signal.SIGTERM else abs(code))
            elif code == WRONG_SETTINGS:
                self._exit_code = code
                self._stop(signal.SIGTERM, None)
            else:
                logger.warning("worker process %d ended (%d); another is started", pid, code)
                if lived < SHORT_LIFE_SECONDS:
                    self._rest_until = time.monotonic() + REST_SECONDS

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Tell all workers; a second time, to be quick."""
        self._is_stopping = True
        for pid in self._started:
            os.kill(pid, signal.SIGTERM)


def _is_closed(descriptor: int) -> bool:
    readable, _, _ = select.select([descriptor], [], [], 0)
    return bool(readable) and not os.read(descriptor, 1_024)
