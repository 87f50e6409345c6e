"""Several workers of one command: forked, so that each starts at once, and again when it ends."""

import logging
import os
import select
import signal
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

from promptstack.config.parent import STDIN, end_with
from promptstack.config.supervisor import LOOK_SECONDS, Supervisor

logger = logging.getLogger(__name__)

REST_SECONDS = 1.0
"""Before a worker that ended soon after its start is started again."""
WRONG_SETTINGS = 2
"""The exit code of a worker that can't start at all; starting it again would not help."""
STOPPING = (signal.SIGTERM, signal.SIGINT)


class ForkedWorker:
    """A worker in a process that was forked from this one."""

    def __init__(self, work: Callable[[], int], pipe: tuple[int, int]) -> None:
        """Run `work` in a child, which ends when this end of the pipe, the second, closes."""
        # Signals wait: the child would else take one, with our handler, for one to its keeper.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _become_worker(work, *pipe)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    def poll(self) -> int | None:
        """Return the exit code; None while the worker runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def terminate(self) -> None:
        """Ask it to end."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it by force."""
        os.kill(self.pid, signal.SIGKILL)


def _become_worker(work: Callable[[], int], theirs: int, ours: int) -> None:
    """Be the child: this never returns."""
    code = 1
    try:
        os.close(ours)
        # Ctrl-C reaches the one that forked us alone, which tells us in order.
        os.setpgid(0, 0)
        for number in STOPPING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        end_with(theirs)
        code = work()
    except Exception:
        # Nobody else would tell: this process ends below.
        logger.exception("a worker met an unexpected error")
    finally:
        logging.shutdown()
        os._exit(code)


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
        self._supervisor = Supervisor(self._note_end, rest_seconds=REST_SECONDS)
        self._times_told = 0
        self._is_stopping = False
        self._exit_code = 0

    def run(self) -> int:
        """Work until SIGTERM or Ctrl-C, which the workers are told of; the exit code."""
        for number in STOPPING:
            signal.signal(number, self._tell)
        pipe = os.pipe()
        for ordinal in range(1, self._count + 1):
            self._supervisor.add(f"worker {ordinal}", partial(ForkedWorker, self._work, pipe))
        told = 0
        while self._supervisor.is_running() or not self._is_stopping:
            if self._with_parent and not self._is_stopping and _is_closed(STDIN):
                self._times_told += 1
            # A second time, workers are quick.
            if self._times_told > told:
                told = self._times_told
                self._stop()
            time.sleep(LOOK_SECONDS)
        return self._exit_code

    def _note_end(self, name: str, process: ForkedWorker, code: int) -> None:
        if self._is_stopping:
            # By SIGTERM ends who had not begun.
            if code != -signal.SIGTERM:
                self._exit_code = self._exit_code or abs(code)
        elif code == WRONG_SETTINGS:
            self._exit_code = code
            self._stop()
        else:
            logger.warning("%s ended (%d); another is started", name, code)

    def _stop(self) -> None:
        self._is_stopping = True
        self._supervisor.terminate()

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self._times_told += 1


def _is_closed(descriptor: int) -> bool:
    readable, _, _ = select.select([descriptor], [], [], 0)
    return bool(readable) and not os.read(descriptor, 1_024)
