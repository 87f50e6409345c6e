"""What tests of runs look at."""

from typing import Any
from uuid import UUID

from sqlalchemy import text

from promptstack.services.runs.views import RunView
from promptstack.tasks.composition import PromptStack
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute
from tests.processes import wait_until


def ended(stack: PromptStack, run: RunView, seconds: float = 180.0) -> RunView:
    wait_until(lambda: stack.runs.get(run.id).state.is_final, f"the end of run {run.id}", seconds)
    return stack.runs.get(run.id)


def prompts(count: int) -> list[dict[str, str]]:
    return [{"custom_id": f"id-{n}", "prompt": f"Prompt number {n}"} for n in range(count)]


def failures(stack: PromptStack, run: RunView) -> dict[str | None, str]:
    return {one.custom_id: one.code for one in stack.run_results.failed(run.id)}


def has_done(stack: WorkerServices, run: RunView, items: int) -> bool:
    return stack.runs.get(run.id).succeeded >= items


def in_ledger(stack: PromptStack, query: str) -> Any:
    with stack.ledger.transaction() as unit:
        return unit.session.scalar(text(query))


def work(stack: WorkerServices, run_id: UUID) -> RunView:
    """Do all that there is to do for a run, here and without a worker."""
    while True:
        stack.run_lifecycle.run_once()  # as each worker does every second
        with stack.ledger.transaction() as unit:
            jobs = unit.session.scalars(
                text("SELECT id FROM jobs WHERE run_id = :run AND state = 'queued'"),
                {"run": run_id},
            ).all()
        if not jobs:
            return stack.runs.get(run_id)
        for job_id in jobs:
            execute(stack, job_id)


def one(stack: WorkerServices, query: str) -> Any:
    with stack.ledger.transaction() as unit:
        return unit.session.execute(text(query)).one()
