"""Tells users by mail how their runs ended, if they want to know."""

from promptstack.repositories.run_models import Run, RunState
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.notifications.events import NotifyEvent
from promptstack.services.notifications.service import MAX_SUBJECT, NotificationService


class RunEnds:
    """Adds the mail in the transaction that ends a run: both are there, or neither."""

    def __init__(self, notifications: NotificationService) -> None:
        self._notifications = notifications

    def tell(self, unit: UnitOfWork, run: Run) -> None:
        """Tell the run's user, if they want it. One mail for each end of a run."""
        if not self._notifications.is_on or run.user_id is None or run.started_at is None:
            return
        user = unit.users.get(run.user_id)
        event = event_of(run)
        if user is None or user.disabled_at is not None or event not in user.notify:
            return
        name = f"{run.name} " if run.name else ""
        self._notifications.add(
            unit,
            run.user_id,
            f"Run {name}is {run.state}"[:MAX_SUBJECT],
            _message(run),
            # A retry has another start, and so another end.
            key=f"run:{run.id}:{run.started_at.isoformat()}",
            event=event,
        )


def event_of(run: Run) -> NotifyEvent:
    """Which event the end of a run is."""
    if run.state in {RunState.COMPLETED, RunState.CANCELLED}:
        return NotifyEvent.RUN_ENDED
    if (run.error_code or "").endswith("BUDGET_REACHED"):
        return NotifyEvent.RUN_BUDGET
    return NotifyEvent.RUN_FAILED


def _message(run: Run) -> str:
    """What became of it, in numbers: what was asked and answered stays in the ledger."""
    cost = "unknown" if run.unknown_cost and not run.cost_usd else f"${run.cost_usd:.6f}"
    why = f"\nReason: {run.error}\n" if run.error else ""
    return (
        f"Run {run.id} of {run.provider}/{run.model} is {run.state}.\n{why}\n"
        f"Items: {run.total:,}\n"
        f"Succeeded: {run.succeeded:,}\n"
        f"Failed: {run.failed:,}\n"
        f"Cost: {cost}\n\n"
        f"See it:      promptstack runs show {run.id}\n"
        f"Its results: promptstack runs export {run.id} -o results.jsonl\n"
    )
