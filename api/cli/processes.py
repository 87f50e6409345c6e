"""The processes that a command starts and ends."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import NoReturn

from api.cli.terminal import stop
from tasks.composition import PromptStack

CHECK_SECONDS = 0.2
STOP_SECONDS = 30.0


def interrupt_on_signals() -> None:
    """Treat SIGTERM and a closed terminal as Ctrl-C, so that everything is stopped in order."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


def _interrupt(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


class Children:
    """Processes of ours that end with this one, however it ends."""

    def __init__(self, stack: PromptStack, *, log: Path | None = None) -> None:
        """Give them the servers of `stack`; with `log`, their log goes there."""
        self._log = log
        self._environment = {
            **os.environ,
            "DATABASE_URL": stack.database_url,
            "REDIS_URL": stack.redis_url,
        }
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, module: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a module of ours as a process."""
        with ExitStack() as opened:
            log = opened.enter_context(self._log.open("a")) if self._log else None
            process = subprocess.Popen(
                [sys.executable, "-m", module, "--with-parent", *arguments],
                env=self._environment,
                # Its end tells the child that we are gone.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if module == "api.http" else log,
                stderr=log,
                text=True,
                # Ctrl-C reaches us alone, so that we stop the children in order.
                start_new_session=True,
            )
        self._processes[name] = process
        return process

    def start_api(self, arguments: list[str]) -> str:
        """Start the HTTP API; its address, once it listens."""
        process = self.start("api", "api.http", *arguments)
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            stop("the HTTP API did not start; the reason stands above.")
        return str(json.loads(line)["url"])

    def watch(self) -> None:
        """Return when a process has ended that should not have."""
        while True:
            for name, process in self._processes.items():
                code = process.poll()
                if code is not None:
                    stop(f"{name} ended by itself (exit code {code}); stopping everything.", 1)
            time.sleep(CHECK_SECONDS)

    def stop(self) -> None:
        """End all processes in order; by force after a while, or at a second Ctrl-C."""
        try:
            for process in self._processes.values():
                process.terminate()
            deadline = time.monotonic() + STOP_SECONDS
            for process in self._processes.values():
                process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            for process in self._processes.values():
                process.kill()
        for process in self._processes.values():
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._processes.clear()
