"""Real processes for tests: started with their own environment, watched by conditions."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Self, TextIO

from tests.fork_server import NUMBER_BYTES, number_read, number_sent

STARTING = threading.Lock()

ROOT = Path(__file__).parent.parent
PATIENCE = 300.0
"""Seconds after which whatever a test waits for counts as hung, on a slow and busy machine, too."""


def wait_until(condition: Callable[[], object], what: str, seconds: float = 120.0) -> None:
    """Wait until `condition` holds; fail with `what` when it doesn't come true.

    `seconds` is for machines that are slow and busy: nothing that comes true waits for it.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


def join(thread: threading.Thread) -> None:
    """Wait for the end of a thread; fail when it doesn't come."""
    thread.join(PATIENCE)
    assert not thread.is_alive(), f"{thread.name} has not ended within {PATIENCE:g} s"


def read_line(file: IO[str], what: str) -> str:
    """The first line that a process writes to a pipe; fail with `what` when none comes."""
    assert select.select([file], [], [], PATIENCE)[0], f"not within {PATIENCE:g} s: {what}"
    return file.readline()


def stop_ignoring_signals() -> None:
    """Let all children of this process start with the default for each signal.

    A shell starts what runs in its background, and nohup what it runs, with signals ignored, and
    every child inherits that, which then hears no Ctrl-C. A handler is not inherited.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


class Forked:
    """A child of the fork server: what `subprocess.Popen` is for a program."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        server.settimeout(PATIENCE)
        self.returncode: int | None = None
        self.pid = self._number()

    def poll(self) -> int | None:
        """The exit code, once there is one."""
        if self.returncode is None and select.select([self._server], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, seconds: float = PATIENCE) -> int:
        if self.returncode is None:
            if not select.select([self._server], [], [], seconds)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", seconds)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def stop(self, seconds: float) -> int:
        """End it in order, and by force where that takes too long; the exit code."""
        self.send_signal(signal.SIGTERM)
        try:
            return self.wait(seconds)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End it without a chance to tidy up; the exit code."""
        self.send_signal(signal.SIGKILL)
        return self.wait()

    def _end(self) -> None:
        self.returncode = self._number()
        self._server.close()

    def _number(self) -> int:
        sent = self._server.recv(NUMBER_BYTES, socket.MSG_WAITALL)
        assert sent, "the fork server is gone"
        return number_read(sent)


class ForkServer:
    """The process that starts our commands; see `tests.fork_server`."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "tests.fork_server"]
            self._process = subprocess.Popen(command, cwd=ROOT, stdin=theirs.fileno())

    def start(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path = ROOT,
        stdin: IO[Any],
        stdout: IO[Any],
        stderr: IO[Any],
        new_session: bool = False,
    ) -> Forked:
        """Start `python *arguments` with just this environment and these files."""
        request = json.dumps(
            {
                "arguments": arguments,
                "environment": dict(environment),
                "folder": str(folder),
                "new_session": new_session,
            }
        ).encode()
        files = [
            each if isinstance(each, int) else each.fileno() for each in (stdin, stdout, stderr)
        ]
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._channel, [b"."], [theirs.fileno(), *files])
        ours.sendall(number_sent(len(request)) + request)
        return Forked(ours)

    def close(self) -> None:
        """End it; what it started goes on."""
        self._channel.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise


@cache
def started_fork_server() -> ForkServer:
    """The one of this process. Threads call `fork_server`, as a cache would start one for each."""
    return ForkServer()


def fork_server() -> ForkServer:
    """The one of this process, started when it is first needed."""
    with STARTING:
        return started_fork_server()


def pipe() -> tuple[TextIO, TextIO]:
    """The two ends of a pipe: what is written to the second is read from the first."""
    read, write = os.pipe()
    return os.fdopen(read, encoding="utf-8"), os.fdopen(write, "w", encoding="utf-8")


def run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    folder: Path = ROOT,
    stdin: bytes = b"",
    seconds: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Run a command of ours to its end; all that it said."""
    with TemporaryFile() as given, TemporaryFile() as output, TemporaryFile() as errors:
        given.write(stdin)
        given.seek(0)
        process = fork_server().start(
            arguments,
            environment=environment,
            folder=folder,
            stdin=given,
            stdout=output,
            stderr=errors,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        for file in (output, errors):
            file.seek(0)
        return subprocess.CompletedProcess(
            [*arguments], code, output.read().decode(), errors.read().decode()
        )


class Process:
    """A command of ours in a process of its own, whose output goes to a file."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
            self._process = fork_server().start(
                arguments,
                environment={**os.environ, **environment},
                stdin=nothing,
                stdout=output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it without a chance to tidy up."""
        self._process.kill()

    def wait(self, seconds: float = 120.0) -> int:
        return self._process.wait(seconds)

    def stop(self) -> None:
        """End it in order, and by force where that takes too long."""
        self._process.stop(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
