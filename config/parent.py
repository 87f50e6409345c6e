"""A child process that must not outlive the one that started it."""

import os
import signal
import sys
import threading


def die_with_parent() -> None:
    """End this process in order when its standard input, a pipe from its parent, closes.

    The kernel closes it however the parent ends, also by SIGKILL.
    """

    def wait() -> None:
        while sys.stdin.buffer.read(1_024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()
