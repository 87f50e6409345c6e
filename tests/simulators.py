"""Simulators for tests: started by fork, and each a test's or a module's own."""

import json
import os
from pathlib import Path
from typing import Self

from promptstack.simulator.process import SimulatorProcess
from tests.processes import fork_server, pipe, read_line

STOP_SECONDS = 5.0


class ForkedSimulator(SimulatorProcess):
    """Runs `python -m promptstack.simulator`, as `SimulatorProcess` does, without its imports."""

    def __enter__(self) -> Self:
        said, output = pipe()
        with said, output, Path(os.devnull).open("r+b") as nothing:
            self._forked = fork_server().start(
                ["-m", "promptstack.simulator", "--port", "0", "--latency", str(self._latency)],
                environment=os.environ,
                stdin=nothing,
                stdout=output,
                stderr=nothing,
            )
            output.close()
            self.url = json.loads(read_line(said, "the simulator's address"))["url"]
        return self

    @property
    def pid(self) -> int:
        return self._forked.pid

    def _end(self) -> None:
        self._forked.stop(STOP_SECONDS)
