"""Jobs that hang hold all slots of a worker; what ends them does not wait behind them."""

from collections.abc import Callable

from promptstack.repositories.jobs.records import JobFilter
from promptstack.repositories.models import JobState
from promptstack.repositories.operation_models import OperationAction
from promptstack.tasks.worker_services import WorkerServices
from tests.processes import Process, wait_until


def test_an_operation_cancels_the_jobs_that_hold_all_slots(
    stack: WorkerServices, start_worker: Callable[..., Process]
) -> None:
    start_worker(WORKER_CONCURRENCY="2")
    hang = {"delay_seconds": 600}
    for _ in range(6):
        stack.jobs.enqueue_generation("Hello.", provider="demo", options=hang, tags=["hangs"])

    def states() -> list[JobState]:
        return [job.state for job in stack.jobs.get_many()]

    wait_until(lambda: states().count(JobState.RUNNING) == 2, "the slots to be taken", 60)
    operation = stack.operations.start(OperationAction.CANCEL, JobFilter(tag="hangs"))
    wait_until(lambda: stack.operations.get(operation.id).done == 6, "the operation", 60)
    assert states() == [JobState.CANCELLED] * 6
    after = stack.jobs.enqueue_generation("Hello.", provider="demo")
    wait_until(lambda: stack.jobs.get(after.id).state is JobState.SUCCEEDED, "a slot", 60)
