"""The processes that a command starts and ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import NoReturn
from urllib.parse import urlsplit

from promptstack.api.cli.terminal import err, stop
from promptstack.config.supervisor import Supervisor
from promptstack.tasks.composition import PromptStack

API = "promptstack.api.http"
CHECK_SECONDS, SERVERS_CHECK_SECONDS = 0.2, 2.0
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
        self._supervisor = Supervisor(self._note_end)
        self._ended_at: dict[str, list[float]] = {}
        """When each process or server ended by itself, of late."""
        self._is_stopping = False

    def start(self, name: str, module: str, *arguments: str) -> None:
        """Start a module of ours as a process."""
        self._supervisor.add(name, partial(self._open, module, *arguments))

    def start_api(self, port: int) -> str:
        """Start the HTTP API; its address, once it listens."""
        url = ""

        def start() -> subprocess.Popen[str]:
            nonlocal url
            # Started again, it must be found where it was.
            process = self._open(API, "--port", str(urlsplit(url).port if url else port))
            url = _address(process) or url
            return process

        self._supervisor.add("api", start)
        if not url:
            stop("the HTTP API did not start; the reason stands above.")
        return url

    def watch(self, revive: Callable[[], list[str]] = list) -> NoReturn:
        """Start again what ends by itself; give up on what does so again and again.

        `revive` does it with the servers below, and says which.
        """
        looked = time.monotonic()
        while True:
            if time.monotonic() - looked > SERVERS_CHECK_SECONDS:
                for name in revive():
                    self._note_death(name)
                looked = time.monotonic()
            self._supervisor.look()
            time.sleep(CHECK_SECONDS)

    def stop(self) -> None:
        """End all processes in order; by force after a while, or at a second Ctrl-C."""
        self._is_stopping = True
        try:
            self._supervisor.terminate()
            self._supervisor.wait(STOP_SECONDS)
        except (TimeoutError, KeyboardInterrupt):
            # What is left to do is short; a third one would leave servers behind.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            self._supervisor.kill()
            self._supervisor.wait(STOP_SECONDS)

    def _note_end(self, name: str, process: "subprocess.Popen[str]", code: int) -> None:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        if not self._is_stopping:
            self._note_death(name, f" (exit code {code})")

    def _note_death(self, what: str, how: str = "") -> None:
        """Say that something ended; stop everything where it does so again and again."""
        now = time.monotonic()
        ends = [at for at in self._ended_at.get(what, []) if now - at < DEATHS_SECONDS] + [now]
        self._ended_at[what] = ends
        if len(ends) > MAX_DEATHS:
            stop(
                f"{what} ended {len(ends)} times within {DEATHS_SECONDS:.0f} s{how}; its log "
                "says why. Stopping everything.",
                1,
            )
        err.print(f"{what} ended{how}; it is started again.", markup=False)

    def _open(self, module: str, *arguments: str) -> subprocess.Popen[str]:
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
