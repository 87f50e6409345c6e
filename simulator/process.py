"""Starts the simulator as a process, and controls it: for tests, benchmarks and chaos."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast
from urllib.request import ProxyHandler, Request, build_opener

MODELS = Path(__file__).with_name("models.toml")
"""A MODELS_FILE that takes the simulator for the providers themselves."""


class SimulatorClient:
    """Controls a running simulator, and reads its ledger and counters."""

    def __init__(self, url: str = "") -> None:
        self.url = url
        """Where the provider's API is, with its /v1."""
        # A proxy set in the environment must not see calls to this machine.
        self._opener = build_opener(ProxyHandler({}))

    @property
    def origin(self) -> str:
        """Where the simulator is, without a path."""
        return self.url.removesuffix("/v1")

    def control(self, *faults: dict[str, Any]) -> None:
        """Append to the fault script: one fault for each of the next provider calls."""
        self._call("/control/faults", list(faults))

    def set_fault_rates(self, *faults: dict[str, Any], seed: int = 0) -> None:
        """Let a share of all calls fail; each fault has its `rate`."""
        self._call("/control/fault-rates", {"seed": seed, "faults": list(faults)})

    def set_limits(self, **limits: Any) -> None:
        """Change the limits of `model`, or of all; see `simulator.limits.Limits`."""
        self._call("/control/limits", limits)

    def set_latency(
        self,
        seconds: float,
        spread: float = 0.0,
        *,
        piece_seconds: float = 0.0,
        batch_seconds: float = 0.0,
    ) -> None:
        """Change how long answers and batches take, and how fast the pieces of a stream come."""
        latency = {"seconds": seconds, "spread": spread, "piece_seconds": piece_seconds}
        self._call("/control/latency", {**latency, "batch_seconds": batch_seconds})

    def reset(self) -> None:
        """Clear the ledger, the counters and the faults still to come."""
        self._call("/control/reset", {})

    def ledger(self, times: int = 1) -> dict[str, int]:
        """Return what was billed at least so many times, by `simulator.ledger.billing_key`."""
        billed: dict[str, int] = self._call(f"/ledger?times={times}")["billed"]
        return billed

    def stats(self) -> dict[str, Any]:
        """The counters of provider calls."""
        return self._call("/stats")

    def wait_until_idle(self, seconds: float = 5.0) -> None:
        """Return when no call is under way; raise `TimeoutError` if one stays."""
        self._wait(0, seconds)

    def wait_until_busy(self, calls: int = 1, seconds: float = 5.0) -> None:
        """Return when just so many calls are under way, or raise `TimeoutError`."""
        self._wait(calls, seconds)

    def _wait(self, calls: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.stats()["in_flight"] != calls:
            if time.monotonic() > deadline:
                raise TimeoutError(f"The simulator did not come to serve {calls} calls.")
            time.sleep(0.01)

    def _call(self, path: str, body: object = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url.removesuffix("/v1") + path, data=data)
        with self._opener.open(request, timeout=10) as response:
            answer: dict[str, Any] = json.load(response)
        return answer


class SimulatorProcess(SimulatorClient):
    """Runs `python -m promptstack.simulator` while the context is open."""

    def __init__(self, *, latency: float = 0.0) -> None:
        super().__init__()
        self._latency = latency

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "promptstack.simulator", "--port", "0", "--latency"]
        self._process = subprocess.Popen(
            [*command, str(self._latency)], stdout=subprocess.PIPE, text=True
        )
        stdout = cast("IO[str]", self._process.stdout)
        line = stdout.readline()
        if not line:
            self._end()
            raise RuntimeError("The simulator ended before it listened.")
        self.url = json.loads(line)["url"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def _end(self) -> None:
        with self._process as process:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
