"""The jobs of operations: a worker changes some hundred jobs a step, each step once.

A step is one transaction under the job's claim: it changes jobs, moves the cursor and keeps the
account. A worker that dies loses the step that it was in, and the next one goes on from the cursor.
"""

from collections.abc import Mapping
from functools import partial

from promptstack.repositories.jobs.operations import Step
from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.operation_models import Operation, OperationAction
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.log import AuditLog
from promptstack.services.errors import NotFound
from promptstack.services.execution.job_context import JobContext
from promptstack.services.jobs.progress import ProgressService
from promptstack.services.jobs.publishing import JobMessage, Publisher, publish_now
from promptstack.services.operations.views import OperationRequest

JOBS_A_STEP = 500
AUDITED = {
    OperationAction.RETRY: Action.JOBS_RETRIED,
    OperationAction.CANCEL: Action.JOBS_CANCELLED,
}


class OperationWork:
    """Handles operations."""

    def __init__(
        self,
        ledger: Ledger,
        publisher: Publisher,
        progress: ProgressService,
        *,
        expires_seconds: float,
        jobs_a_step: int = JOBS_A_STEP,
    ) -> None:
        self._progress = progress
        self._expires_seconds = expires_seconds
        self._jobs_a_step = jobs_a_step
        self._publish = partial(publish_now, ledger, publisher)

    def run(self, job: JobContext) -> Mapping[str, object]:
        """Do an operation from where it stands to its end; what it came to."""
        request = OperationRequest.model_validate(job.claim.request)
        while True:
            job.handle.check_may_begin()
            step, operation = job.ledger.write(lambda unit: self._step(unit, job.claim, request))
            self._progress.rebuild([ref.id for ref in step.changed])
            job.show(_looked_at(operation), operation.matched or 0)
            if step.is_last:
                return {
                    name: getattr(operation, name)
                    for name in ("matched", "done", "skipped", "failed")
                }

    def _step(
        self, unit: UnitOfWork, claim: Claim, request: OperationRequest
    ) -> tuple[Step, Operation]:
        unit.steps.check_claim(claim)  # its row is locked: nobody else is at the same step
        operation = unit.operations.find(claim.job_id)
        if operation is None:
            raise NotFound(f"The account of operation {claim.job_id} was deleted.")
        step = unit.operations.step(
            operation, request.wanted, lifetime=self._expires_seconds, limit=self._jobs_a_step
        )
        unit.steps.set_progress(claim, _looked_at(operation), operation.matched or 0)
        if step.changed:
            _audit(unit, request, claim, len(step.changed))
        if request.action is OperationAction.CANCEL:
            # Without a message, no worker would report the end to AsyncResult and Flower.
            unheard = [ref for ref in step.changed if ref.id in step.unheard]
            unit.after_commit(self._publish, *map(JobMessage.of, unheard))
        return step, operation


def _looked_at(operation: Operation) -> int:
    return operation.done + operation.skipped + operation.failed


def _audit(unit: UnitOfWork, request: OperationRequest, claim: Claim, count: int) -> None:
    """Record what somebody does to more than their own jobs."""
    actor = request.actor
    owner = request.wanted.user_id
    if actor is None or (owner is not None and owner == actor.user_id):
        return
    wanted = {name: value for name, value in vars(request.wanted).items() if value is not None}
    AuditLog.record(
        unit,
        actor=actor,
        action=AUDITED[request.action],
        object=ObjectKind.OPERATION.of(claim.job_id),
        detail={"filter": wanted, "count": count},
    )
