"""`python -m promptstack.chaos.keep N COMMAND...`: keep N processes of a command running."""

import select
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from types import FrameType

from promptstack.config.parent import STDIN
from promptstack.config.supervisor import LOOK_SECONDS, Supervisor

END_SECONDS = 30.0
"""Most that a process may take to end. Whoever waits for us would wait for ever."""


def main() -> None:
    """Start what has ended, until SIGTERM or the end of standard input."""
    count, *command = sys.argv[1:]
    signal.signal(signal.SIGTERM, _end)
    supervisor = Supervisor()
    try:
        for _ in range(int(count)):
            supervisor.add(command[0], partial(subprocess.Popen, command, stdin=subprocess.DEVNULL))
        # Nobody writes to it: it is readable when whoever started us has ended.
        while not select.select([STDIN], [], [], LOOK_SECONDS)[0]:
            supervisor.look()
    finally:
        supervisor.terminate()
        with suppress(TimeoutError):
            supervisor.wait(END_SECONDS)
        supervisor.kill()
        supervisor.wait(END_SECONDS)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main()
