"""One run: load, faults, and the judgement."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from chaos.batch import BatchVerdict
from chaos.driver import Act, Driver, Happened
from chaos.judge import Judge, Verdict
from chaos.load import Load
from chaos.plan import Fault, Planned
from chaos.scorecard import Scorecard
from services.progress import ProgressService

LOOK_SECONDS = 0.5
REPORT_SECONDS = 10.0
SLICE = 1_000


@dataclass(frozen=True)
class Order:
    """What a run shall be."""

    seed: int
    jobs: int
    plan: Sequence[Planned]
    slots: int
    """Calls that all workers make at once."""
    patience: float
    """Seconds for what is left when the last fault is over."""


def run(
    order: Order,
    load: Load,
    acts: Mapping[Fault, Act],
    judge: Judge,
    *,
    books: Callable[[], Mapping[str, int]] | None,
    progress: ProgressService,
    say: Callable[[str], None],
    batch: Callable[[Sequence[Happened]], BatchVerdict] | None = None,
) -> Scorecard:
    """Run and judge. What has not ended in time is judged as it stands.

    `batch` waits for a run beside the jobs, and judges it by the faults that happened.
    """
    began = time.monotonic()
    driver = Driver(acts)
    judge.watch()
    threads = [
        threading.Thread(target=load.run, args=(order.jobs,), name="load", daemon=True),
        threading.Thread(target=driver.run, args=(order.plan,), name="driver", daemon=True),
    ]
    try:
        for thread in threads:
            thread.start()
        _wait(threads, lambda: _report(began, load, driver, say))
        ids = [job.id for job in load.accepted]
        _wait_for_the_rest(began, ids, judge, order.patience, say)
        verdict = judge.judge(
            load.accepted,
            driver.happened,
            billed=None if books is None else books(),
            slots=order.slots,
        )
        _judge_progress(verdict, ids, progress, judge)
        return Scorecard(
            seed=order.seed,
            jobs=order.jobs,
            seconds=time.monotonic() - began,
            faults=driver.counts(),
            faults_failed=driver.failed,
            refusals=load.refusals,
            verdict=verdict,
            batch=None if batch is None else batch(driver.happened),
        )
    finally:
        load.stop()
        driver.stop()
        for thread in threads:
            thread.join()
        judge.unwatch()


def _wait(threads: Sequence[threading.Thread], report: Callable[[], None]) -> None:
    reported = time.monotonic()
    while any(thread.is_alive() for thread in threads):
        time.sleep(LOOK_SECONDS)
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            report()


def _wait_for_the_rest(
    began: float, ids: Sequence[UUID], judge: Judge, patience: float, say: Callable[[str], None]
) -> None:
    deadline = time.monotonic() + patience
    reported = 0.0
    while (left := judge.open_jobs(ids)) and time.monotonic() < deadline:
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            say(f"{time.monotonic() - began:4.0f} s: {left:,} jobs are left")
        time.sleep(LOOK_SECONDS)


def _report(began: float, load: Load, driver: Driver, say: Callable[[str], None]) -> None:
    counts = driver.counts()
    others = sum(count for fault, count in counts.items() if fault is not Fault.KILL)
    say(
        f"{time.monotonic() - began:4.0f} s: {len(load.accepted):,} jobs accepted, "
        f"{counts.get(Fault.KILL, 0)} workers killed, {others} other faults"
    )


def _judge_progress(
    verdict: Verdict, ids: Sequence[UUID], progress: ProgressService, judge: Judge
) -> None:
    """Compare what anybody sees of the jobs with the database."""
    states = judge.states(ids)
    for first in range(0, len(ids), SLICE):
        shown = progress.read(ids[first : first + SLICE])
        verdict.rebuilt += sum(str(one.state) == states.get(id_) for id_, one in shown.items())
