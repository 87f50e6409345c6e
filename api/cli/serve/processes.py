"""The processes that a command starts and ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import NoReturn
from urllib.parse import urlsplit

from promptstack.api.cli.terminal import err, stop
from promptstack.tasks.composition import PromptStack

API = "promptstack.api.http"
CHECK_SECONDS = 0.2
SERVERS_CHECK_SECONDS = 2.0
STOP_SECONDS = 30.0
MAX_DEATHS, DEATHS_SECONDS = 5, 60.0
"""What ends by itself more often than this is not started again."""


def interrupt_on_signals() -> None:
    """Treat SIGTERM and a closed terminal as Ctrl-C, so that everything is stopped in order.

    What was started by nohup goes on when its terminal is closed.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _interrupt)


def _interrupt(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@dataclass
class Child:
    """A process of ours and how to start it again."""

    name: str
    module: str
    arguments: list[str]
    process: subprocess.Popen[str]
    deaths: list[float] = field(default_factory=list)
    """When it ended by itself, of late."""


class Children:
    """Processes of ours that end with this one, however it ends."""

    def __init__(
        self,
        stack: PromptStack,
        *,
        log: Path | None = None,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Give them the servers of `stack` and other settings; with `log`, their log goes there."""
        self._log = log
        self._environment = {
            **os.environ,
            "DATABASE_URL": stack.database_url,
            "REDIS_URL": stack.redis_url,
            **variables,
        }
        self._children: list[Child] = []
        self._deaths: dict[str, list[float]] = {}
        """When the servers below ended, of late."""

    def start(self, name: str, module: str, *arguments: str) -> None:
        """Start a module of ours as a process."""
        process = self._open(module, list(arguments))
        self._children.append(Child(name, module, list(arguments), process))

    def start_api(self, port: int) -> str:
        """Start the HTTP API; its address, once it listens."""
        self.start("api", API, "--port", str(port))
        child = self._children[-1]
        url = _address(child.process)
        if not url:
            stop("the HTTP API did not start; the reason stands above.")
        # Started again, it must be found where it was.
        child.arguments = ["--port", str(urlsplit(url).port)]
        return url

    def watch(self, revive: Callable[[], list[str]] = list) -> NoReturn:
        """Start again what ends by itself; give up on what does so again and again.

        `revive` does it with the servers below, and says which.
        """
        looked = time.monotonic()
        while True:
            if time.monotonic() - looked > SERVERS_CHECK_SECONDS:
                for name in revive():
                    self._note_death(name, self._deaths.setdefault(name, []))
                looked = time.monotonic()
            for child in self._children:
                code = child.process.poll()
                if code is not None:
                    self._start_again(child, code)
            time.sleep(CHECK_SECONDS)

    def stop(self) -> None:
        """End all processes in order; by force after a while, or at a second Ctrl-C."""
        processes = [child.process for child in self._children]
        try:
            for process in processes:
                process.terminate()
            deadline = time.monotonic() + STOP_SECONDS
            for process in processes:
                process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            # What is left to do is short; a third one would leave servers behind.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            for process in processes:
                process.kill()
        for process in processes:
            process.wait()
            _close_pipes(process)
        self._children.clear()

    def _start_again(self, child: Child, code: int) -> None:
        self._note_death(child.name, child.deaths, f" (exit code {code})")
        _close_pipes(child.process)
        child.process = self._open(child.module, child.arguments)
        if child.module == API:
            _address(child.process)

    def _note_death(self, what: str, deaths: list[float], how: str = "") -> None:
        """Say that something ended; stop everything where it does so again and again."""
        now = time.monotonic()
        deaths[:] = [at for at in deaths if now - at < DEATHS_SECONDS] + [now]
        if len(deaths) > MAX_DEATHS:
            stop(
                f"{what} ended {len(deaths)} times within {DEATHS_SECONDS:.0f} s{how}; its log "
                "says why. Stopping everything.",
                1,
            )
        err.print(f"{what} ended{how}; it is started again.", markup=False)

    def _open(self, module: str, arguments: list[str]) -> subprocess.Popen[str]:
        with ExitStack() as opened:
            log = opened.enter_context(self._log.open("a")) if self._log else None
            return subprocess.Popen(
                [sys.executable, "-m", module, "--with-parent", *arguments],
                env=self._environment,
                # Its end tells the child that we are gone.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if module == API else log,
                stderr=log,
                text=True,
                # Ctrl-C reaches us alone, so that we stop the children in order.
                start_new_session=True,
            )


def _address(process: subprocess.Popen[str]) -> str:
    """Where an API listens, once it says so; empty where it ends instead."""
    line = process.stdout.readline() if process.stdout else ""
    return str(json.loads(line)["url"]) if line else ""


def _close_pipes(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
