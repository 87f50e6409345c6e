"""Why a queued job waits: each reason, from its row and from who is alive, at every door."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from promptstack.repositories.models import IS_HELD, JobState
from promptstack.services.errors import BudgetHeld
from promptstack.services.jobs.views import JobView, WaitReason
from promptstack.services.limiter.errors import CircuitOpen, LimiterWait
from promptstack.services.llm.errors import Overloaded, RateLimited
from promptstack.tasks.worker_services import WorkerServices
from tests.http import serve

LATER = datetime(2100, 1, 1, tzinfo=UTC)
PAST = datetime(2000, 1, 1, tzinfo=UTC)
CASES: Mapping[str, tuple[dict[str, Any], WaitReason, datetime | None]] = {
    "sent": ({"rung_at": PAST}, WaitReason.QUEUE, None),
    "not sent yet": ({}, WaitReason.QUEUE, None),
    "bulk": ({"queue": "generation-bulk"}, WaitReason.TURN, None),
    "bulk and sent": ({"queue": "generation-bulk", "rung_at": PAST}, WaitReason.QUEUE, None),
    "limit": ({"not_before": LATER, "error_code": LimiterWait.code}, WaitReason.LIMIT, LATER),
    "limit of a bulk job": (
        {"queue": "generation-bulk", "not_before": LATER, "error_code": LimiterWait.code},
        WaitReason.LIMIT,
        LATER,
    ),
    "told to slow down": (
        {"not_before": LATER, "error_code": RateLimited.code},
        WaitReason.LIMIT,
        LATER,
    ),
    "spend cap": ({"not_before": LATER, "error_code": BudgetHeld.code}, WaitReason.LIMIT, LATER),
    "circuit": ({"not_before": LATER, "error_code": CircuitOpen.code}, WaitReason.CIRCUIT, LATER),
    "backoff": ({"not_before": LATER, "error_code": Overloaded.code}, WaitReason.BACKOFF, LATER),
    "due again": ({"not_before": PAST, "error_code": Overloaded.code}, WaitReason.QUEUE, None),
}


@pytest.fixture
def job(stack: WorkerServices) -> JobView:
    return stack.jobs.enqueue_generation("x")


def put(stack: WorkerServices, job: JobView, **columns: Any) -> None:
    """Have a job's row say this, and that it has failed where it says an error."""
    columns = {"rung_at": None, "rung_epoch": None, "error": "Because.", **columns}
    sets = ", ".join(f"{name} = :{name}" for name in columns)
    with stack.ledger.transaction() as unit:
        unit.session.execute(
            text(f"UPDATE jobs SET {sets} WHERE id = :id"), {"id": job.id, **columns}
        )


def employ(stack: WorkerServices, providers: list[str] | None = None, age: float = 0.0) -> None:
    """Have a worker that was heard from so many seconds ago."""
    with stack.ledger.transaction() as unit:
        worker = uuid4()
        unit.heartbeats.beat(worker, "host", 1, providers=providers)
        unit.session.execute(
            text("UPDATE workers SET heartbeat_at = heartbeat_at - :age WHERE id = :id"),
            {"age": timedelta(seconds=age), "id": worker},
        )


@pytest.mark.parametrize("case", CASES)
def test_each_reason(stack: WorkerServices, job: JobView, case: str) -> None:
    employ(stack)
    columns, reason, until = CASES[case]
    put(stack, job, **columns)
    waits = stack.jobs.get(job.id).waits
    assert waits is not None
    assert (waits.reason, waits.until) == (reason, until)
    assert waits.detail == ("Because." if until else waits.detail)
    assert stack.jobs.get_many()[0].waits == waits
    assert stack.jobs.get_all([job.id])[0].waits == waits
    assert stack.jobs.waits_of([job.id, uuid4()]) == {job.id: waits}
    with serve(stack, is_admin=True) as client:
        shown = client.get(f"/api/v1/jobs/{job.id}").json()
        assert shown["waits"]["reason"] == reason
        [listed] = client.get("/api/v1/jobs?owner=all").json()["jobs"]
        assert listed == shown


def test_nobody_who_could_run_it_goes_before_all_else(stack: WorkerServices, job: JobView) -> None:
    put(stack, job, not_before=LATER, error_code=LimiterWait.code, provider="openai")
    assert not stack.factory.is_set_up("openai")

    def reason() -> tuple[WaitReason, str]:
        waits = stack.jobs.get(job.id).waits
        assert waits is not None
        return waits.reason, waits.detail

    assert "promptstack worker" in reason()[1]
    employ(stack, age=3_600)
    assert reason()[0] is WaitReason.NO_WORKER
    employ(stack, ["gemini"])
    assert reason()[0] is WaitReason.NO_WORKER
    assert "openai" in reason()[1]
    employ(stack, ["openai"])
    assert reason()[0] is WaitReason.LIMIT


@pytest.mark.parametrize("state", [state for state in JobState if state is not JobState.QUEUED])
def test_only_a_queued_job_waits(stack: WorkerServices, job: JobView, state: JobState) -> None:
    employ(stack)
    finished = PAST if state.is_final else None
    put(stack, job, state=state, finished_at=finished, not_before=LATER)
    assert stack.jobs.get(job.id).waits is None


def test_a_bulk_job_of_the_ledger_is_held_where_its_reason_says_so(stack: WorkerServices) -> None:
    """The same rule stands in SQL, where turns are shared out, and in Python."""
    employ(stack)
    jobs = [stack.jobs.enqueue_generation("x") for _ in CASES]
    for job, (columns, _, _) in zip(jobs, CASES.values(), strict=True):
        put(stack, job, **columns)
    with stack.ledger.transaction() as unit:
        held = set(unit.session.scalars(text(f"SELECT id FROM jobs WHERE {IS_HELD}")))
    turns = {
        id_
        for id_, one in stack.jobs.waits_of([job.id for job in jobs]).items()
        if one.reason is WaitReason.TURN
    }
    assert turns == held != set()
