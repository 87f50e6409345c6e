"""One run: load, faults, and the judgement."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from promptstack.chaos.batch import Batch
from promptstack.chaos.clients import Clients
from promptstack.chaos.driver import Act, Driver
from promptstack.chaos.judge import Judge
from promptstack.chaos.load import Load
from promptstack.chaos.plan import LOST_SECONDS, Fault, Planned
from promptstack.chaos.scorecard import Scorecard
from promptstack.chaos.verdict import Verdict
from promptstack.services.jobs.progress import ProgressService

LOOK_SECONDS = 0.5
REPORT_SECONDS = 10.0
QUIET_LOOKS = 60
"""After so many looks it is judged as it stands: somebody else may use this deployment."""
SLICE = 1_000
BEFORE = timedelta(minutes=1)
"""A batch is handed in before the run begins, and clocks differ."""


@dataclass(frozen=True)
class Order:
    """What a run shall be."""

    seed: int
    jobs: int
    plan: Sequence[Planned]
    slots: int
    """Calls that all workers make at once."""
    patience: float
    """Seconds in which nothing may move before what is left counts as unfinished."""
    lost_seconds: float = LOST_SECONDS
    """The heartbeat timeout."""


def run(
    order: Order,
    load: Load | Clients,
    acts: Mapping[Fault, Act],
    judge: Judge,
    *,
    books: Callable[[], Mapping[str, int]] | None,
    progress: ProgressService,
    say: Callable[[str], None],
    batch: Batch | None = None,
) -> Scorecard:
    """Run, wait as long as anything moves, and judge when all is quiet.

    `batch` is a run beside the jobs.
    """
    began, since = time.monotonic(), datetime.now(UTC) - BEFORE
    driver = Driver(acts)
    judge.watch()
    threads = [
        threading.Thread(target=load.run, args=(order.jobs,), name="load", daemon=True),
        threading.Thread(target=driver.run, args=(order.plan,), name="driver", daemon=True),
    ]
    try:
        for thread in threads:
            thread.start()
        wait_for_the_load(
            threads,
            lambda: (len(load.accepted), sum(driver.counts().values())),
            order.patience,
            lambda: _report(began, load, driver, say),
        )
        load.stop()
        ids = [job.id for job in load.accepted]
        wait_for_the_rest(
            began,
            lambda: bool(judge.open_jobs(ids)) or (batch is not None and not batch.is_over()),
            lambda: judge.movement(since),
            order.patience,
            say,
        )
        billed = _quiet_books(books, lambda: judge.movement(since))
        verdict = judge.judge(
            load.accepted,
            driver.happened,
            billed=billed,
            slots=order.slots,
            lost_seconds=order.lost_seconds,
        )
        _judge_progress(verdict, ids, progress, judge)
        return Scorecard(
            seed=order.seed,
            jobs=order.jobs,
            seconds=time.monotonic() - began,
            faults=driver.counts(),
            faults_failed=driver.failed,
            refusals=load.refusals,
            surprises=load.surprises,
            verdict=verdict,
            batch=None if batch is None else batch.judge(driver.happened),
        )
    finally:
        load.stop()
        driver.stop()
        for thread in threads:
            thread.join()
        judge.unwatch()


def wait_for_the_load(
    threads: Sequence[threading.Thread],
    movement: Callable[[], tuple[int, ...]],
    patience: float,
    report: Callable[[], None],
) -> None:
    """Wait until all is handed in and every fault is over, or nothing has moved for so long.

    Clients try again for ever. A server that did not come back after a fault would never end it.
    """
    moved = reported = time.monotonic()
    before = movement()
    while any(thread.is_alive() for thread in threads) and time.monotonic() - moved < patience:
        time.sleep(LOOK_SECONDS)
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            report()
        now = movement()
        if now != before:
            moved, before = time.monotonic(), now


def wait_for_the_rest(
    began: float,
    is_left: Callable[[], bool],
    movement: Callable[[], tuple[object, ...]],
    patience: float,
    say: Callable[[str], None],
) -> None:
    """Wait until nothing is left, or nothing has moved for so long."""
    moved, before = time.monotonic(), movement()
    reported = 0.0
    while is_left() and time.monotonic() - moved < patience:
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            say(f"{time.monotonic() - began:4.0f} s: {before[0]:,} jobs are left")
        time.sleep(LOOK_SECONDS)
        now = movement()
        if now != before:
            moved, before = time.monotonic(), now


def _quiet_books(
    books: Callable[[], Mapping[str, int]] | None, movement: Callable[[], tuple[object, ...]]
) -> Mapping[str, int] | None:
    """The provider's books, once neither they nor the ledger change any more."""
    if books is None:
        return None
    before = (books(), movement())
    for _ in range(QUIET_LOOKS):
        time.sleep(2 * LOOK_SECONDS)
        now = (books(), movement())
        if now == before:
            break
        before = now
    return before[0]


def _report(began: float, load: Load | Clients, driver: Driver, say: Callable[[str], None]) -> None:
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
