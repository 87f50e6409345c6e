"""A child process that must not outlive the one that started it."""

import os
import signal
import threading

STDIN = 0


def die_with_parent() -> None:
    """End this process in order when its standard input, a pipe from its parent, closes."""
    end_with(STDIN)


def end_with(pipe: int) -> None:
    """End this process in order when this pipe closes.

    The kernel closes it however the process at its other end does end, also by SIGKILL.
    """

    def wait() -> None:
        # Not through sys.stdin, whose lock this thread would hold when the interpreter ends.
        while os.read(pipe, 1_024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()
