"""`python -m promptstack.chaos.keep N COMMAND...`: keep N processes of a command running."""

import select
import signal
import subprocess
import sys
from types import FrameType

LOOK_SECONDS = 0.05
STDIN = 0


def main() -> None:
    """Start what has ended, until SIGTERM or the end of standard input."""
    count, *command = sys.argv[1:]
    signal.signal(signal.SIGTERM, _end)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        # Nobody writes to it: it is readable when whoever started us has ended.
        while not select.select([STDIN], [], [], LOOK_SECONDS)[0]:
            processes = [process for process in processes if process.poll() is None]
            while len(processes) < int(count):
                processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main()
