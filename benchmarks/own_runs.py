"""Runs of ours, measured: one worker process against a simulator, all on servers of their own."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
from sqlalchemy import text

from benchmarks.deployment import Deployment, deployment
from benchmarks.metering import Meter
from promptstack.repositories.run_models import RunState
from promptstack.services.runs.views import RunView

LIMITS = '[[limits]]\nprovider = "openai"\nrequests_per_minute = 1000000000\nin_flight = 100000\n'
"""The limits of an account that has enough: without any known, the limiter feels its way up."""
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Sample:
    """A look at a run."""

    seconds: float
    done: int
    rss: int
    """Bytes of the worker."""


@dataclass(frozen=True)
class OwnRun:
    """What a run took; the seconds count from the moment when it was accepted."""

    run: RunView
    accept_seconds: float
    accept_cpu: float
    """Processor seconds of the submitting process until the run was accepted."""
    seconds: float
    """Until every item had its outcome."""
    end_seconds: float
    """Until the run was completed: the index was built."""
    worker_cpu: float
    postgres_cpu: float
    redis_cpu: float
    peak_rss: int
    samples: list[Sample] = field(repr=False)


@contextmanager
def one_worker(simulator_url: str) -> Iterator[Deployment]:
    """Servers and one worker that is warm: the SDK is loaded, connections are open."""
    with deployment(simulator_url, LIMITS, LOG_LEVEL="WARNING") as deployed:
        deployed.start_workers(1)
        yield deployed


def measure(
    deployed: Deployment, submit: Callable[[Any], RunView], *, until_end: bool = True
) -> OwnRun:
    """Submit a run and follow it."""
    worker = psutil.Process(deployed.workers[0].pid)
    with deployed.stack.ledger.transaction() as unit:
        backend = psutil.Process(unit.session.scalar(text("SELECT pg_backend_pid()")))
        postmaster = psutil.Process(backend.ppid())
    redis = psutil.Process(deployed.stack.redis.info("server")["process_id"])
    samples: list[Sample] = []
    with Meter(worker) as used, Meter(postmaster) as stored, Meter(redis) as cached:
        began, cpu_before = time.monotonic(), time.process_time()
        run = submit(deployed.stack.runs)
        accepted, accept_cpu = time.monotonic(), time.process_time() - cpu_before
        while run.state is RunState.RUNNING:
            time.sleep(LOOK_SECONDS)
            run = deployed.stack.runs.get(run.id)
            passed = time.monotonic() - accepted
            samples.append(Sample(passed, run.succeeded + run.failed, worker.memory_info().rss))
        done = time.monotonic()
    if until_end:
        run = deployed.stack.runs.wait(run.id, 1_200)
    return OwnRun(
        run=run,
        accept_seconds=accepted - began,
        accept_cpu=accept_cpu,
        seconds=done - accepted,
        end_seconds=time.monotonic() - accepted,
        worker_cpu=used.cpu_seconds,
        postgres_cpu=stored.cpu_seconds,
        redis_cpu=cached.cpu_seconds,
        peak_rss=used.peak_rss,
        samples=samples,
    )
