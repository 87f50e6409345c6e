"""The HTTP API as a process of its own, and curl to speak to it."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Self

from tests.processes import PATIENCE, fork_server, pipe, read_line


class Door:
    """A process that serves the HTTP API on a free port."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self._log = log
        given, self._given = pipe()
        self._said, output = pipe()
        with log.open("w") as errors, given, output:
            self.process = fork_server().start(
                ["-m", "promptstack.api.http", "--port", "0", *arguments],
                environment=os.environ,
                stdin=given,
                stdout=output,
                stderr=errors,
            )
        line = read_line(self._said, "the server's address")
        assert line, self.log()
        self.url = json.loads(line)["url"]

    def log(self) -> str:
        return self._log.read_text()

    def curl(self, path: str, *arguments: str) -> tuple[int, dict[str, Any]]:
        """The status and the body of curl's answer."""
        command = ["curl", "-sS", "--max-time", "60", "-w", "\n%{http_code}", *arguments]
        ran = subprocess.run(
            [*command, self.url + path],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
        body, _, status = ran.stdout.rpartition("\n")
        return int(status), json.loads(body)

    def status(self, path: str, *arguments: str) -> int:
        """The status of curl's answer, whatever its body is."""
        command = ["curl", "-sS", "--max-time", "60", "-o", "/dev/null", "-w", "%{http_code}"]
        ran = subprocess.run(
            [*command, *arguments, self.url + path],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
        return int(ran.stdout)

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """The exit code, and what else came on standard output."""
        self.process.send_signal(number)
        self._given.close()
        return self.process.wait(20), self._said.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self._given.close()
        self._said.close()
