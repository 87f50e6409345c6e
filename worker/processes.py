"""Several workers of one command: forked, so that each starts at once, and again when it ends."""

import logging
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from promptstack.config.parent import STDIN, end_with

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.05
SHORT_LIFE_SECONDS, REST_SECONDS = 2.0, 1.0
"""What ends so soon is started again only after a rest."""
WRONG_SETTINGS = 2
"""The exit code of a worker that can't start at all; starting it again would not help."""
STOPPING = (signal.SIGTERM, signal.SIGINT)


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
        for number in STOPPING:
            signal.signal(number, self._stop)
        while self._started or not self._is_stopping:
            self._start_missing()
            time.sleep(LOOK_SECONDS)
            self._reap()
            if self._with_parent and not self._is_stopping and _is_closed(STDIN):
                self._stop(signal.SIGTERM, None)
        return self._exit_code

    def _start_missing(self) -> None:
        while self._misses_one() and time.monotonic() >= self._rest_until:
            with _undisturbed():
                if self._misses_one():
                    self._fork()

    def _misses_one(self) -> bool:
        return len(self._started) < self._count and not self._is_stopping

    def _fork(self) -> None:
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
            for number in STOPPING:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            end_with(self._theirs)
            code = self._work()
        except Exception:
            # Nobody else would tell: this process ends below.
            logger.exception("a worker met what it did not expect")
        finally:
            logging.shutdown()
            os._exit(code)

    def _reap(self) -> None:
        while self._started:
            with _undisturbed():
                pid, status = os.waitpid(-1, os.WNOHANG)
                began = self._started.pop(pid, None)
            if pid == 0:
                return
            if began is None:
                continue  # an orphan that the system gave us, as it does to the first process
            lived = time.monotonic() - began
            code = os.waitstatus_to_exitcode(status)
            if self._is_stopping:
                # By SIGTERM ends who had not begun.
                if code != -signal.SIGTERM:
                    self._exit_code = self._exit_code or abs(code)
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


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let signals wait: whoever is told to stop must be known, and be there.

    A worker that is just being forked would else never hear of it, or take the signal for one to
    its keeper.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def _is_closed(descriptor: int) -> bool:
    readable, _, _ = select.select([descriptor], [], [], 0)
    return bool(readable) and not os.read(descriptor, 1_024)
