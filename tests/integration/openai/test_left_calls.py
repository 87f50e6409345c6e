"""Direct calls whose answer can't be waited for to its end: what their clients should do next."""

import asyncio

import orjson
import pytest
from fastapi import Request

from promptstack.api.http.app import create_app
from promptstack.api.http.direct import DirectCall
from promptstack.repositories.models import JobState
from promptstack.services.jobs.views import JobView
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import state

AGAIN, KEY = "retry-after", (b"idempotency-key", b"one")


def call_of(
    stack: WorkerServices, *, is_kept: bool, header: tuple[bytes, bytes] | None = None
) -> DirectCall:
    """The call of a job that waits."""
    caller = stack.keys.authenticate(stack.keys.create("ada@example.org", "Test"))
    request = Request(
        {
            "type": "http",
            "method": "POST",
            "headers": [] if header is None else [header],
            "app": create_app(stack),
            "state": {"caller": caller},
        }
    )
    job = stack.jobs.enqueue_generation("Hello.", provider="demo", **caller.as_owner)
    return DirectCall(request, job, is_kept=is_kept)


def test_nobody_is_told_to_ask_again_for_a_job_that_goes_on(stack: WorkerServices) -> None:
    """It would be one more job."""
    call = call_of(stack, is_kept=True)
    told = asyncio.run(call.stopped())
    assert state(stack, call.job) is JobState.QUEUED
    assert (told.status_code, told.headers["x-should-retry"]) == (503, "false")
    assert AGAIN not in told.headers
    assert f"Job {call.job.id} goes on" in orjson.loads(told.body)["detail"]


@pytest.mark.parametrize("is_kept", [False, True], ids=["cancelled", "with the same key"])
def test_who_makes_no_other_job_by_it_is_told_to_ask_again(
    stack: WorkerServices, *, is_kept: bool
) -> None:
    call = call_of(stack, is_kept=is_kept, header=KEY if is_kept else None)
    told = asyncio.run(call.stopped())
    assert (told.status_code, told.headers[AGAIN]) == (503, "1")
    assert "x-should-retry" not in told.headers
    assert state(stack, call.job) is (JobState.QUEUED if is_kept else JobState.CANCELLED)


def test_a_job_that_was_deleted_is_not_asked_for_again(stack: WorkerServices) -> None:
    call = call_of(stack, is_kept=False)
    stack.jobs.cancel(call.job.id)
    with stack.ledger.transaction() as unit:
        unit.responses.delete(call.job.id)
    told = asyncio.run(call.stopped())
    assert (told.status_code, told.headers["x-should-retry"]) == (404, "false")
    assert orjson.loads(told.body)["code"] == "job_deleted"


@pytest.mark.parametrize(
    ("code", "is_over_soon"),
    [
        ("RATE_LIMITED", True),
        ("RATE_LIMIT_WAIT", True),
        ("PROVIDER_OVERLOADED", True),
        ("CIRCUIT_OPEN", True),
        ("QUOTA_EXHAUSTED", False),
        ("INVALID_PROVIDER_REQUEST", False),
        ("PROVIDER_BROKE", False),
    ],
)
def test_what_is_refused_for_now_may_be_asked_again(
    stack: WorkerServices, code: str, *, is_over_soon: bool
) -> None:
    call = call_of(stack, is_kept=False)
    failed: JobView = call.job.model_copy(
        update={"state": JobState.FAILED, "error_code": code, "error": "No."}
    )
    told = asyncio.run(call.refusal(failed))
    assert (AGAIN in told.headers) is is_over_soon
    assert ("x-should-retry" in told.headers) is not is_over_soon
