"""A reconciler whose clock a test moves."""

from datetime import UTC, datetime, timedelta

from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.jobs.publishing import Publisher
from promptstack.services.maintenance.liveness import Liveness
from promptstack.services.maintenance.outbox import Outbox
from promptstack.services.maintenance.reconciler import Reconciler, Step
from promptstack.tasks.worker_services import WorkerServices


class Clock:
    """The database's clock, as a test moves it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self, unit: UnitOfWork) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def outbox_of(
    stack: WorkerServices,
    *,
    publisher: Publisher | None = None,
    liveness: Liveness | None = None,
) -> Outbox:
    return Outbox(
        stack.ledger,
        publisher or stack.publisher,
        stack.progress,
        rate_limited=stack.rate_limited_jobs,
        bulk_jobs=stack.bulk_jobs,
        liveness=liveness or stack.liveness,
    )


def new_reconciler(stack: WorkerServices, clock: Clock, silence: float = 15.0) -> Reconciler:
    liveness = Liveness(stack.ledger, worker_lost_seconds=silence, clock=clock)
    outbox = outbox_of(stack, liveness=liveness)
    return Reconciler([Step("liveness", liveness.run_once), Step("messages", outbox.publish)])


def reconciler_of(stack: WorkerServices, clock: Clock, silence: float = 15.0) -> Reconciler:
    made = new_reconciler(stack, clock, silence)
    made.run_once()
    for _ in range(3):
        clock.move(silence / 3)
        made.run_once()
    return made
