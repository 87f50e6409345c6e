"""Answers that were paid for are kept, whatever becomes of their job meanwhile."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, update

from promptstack.repositories.models import Billing, JobState, Worker
from promptstack.services.jobs.views import JobView
from promptstack.services.limiter.limiter import RateLimiter
from promptstack.services.limiter.terms import Settlement
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, employ
from tests.jobs import execute
from tests.processes import wait_until

LIMITS = '[[limits]]\nprovider = "demo"\nin_flight = 1\n'


@pytest.fixture
def limited(stack: WorkerServices, tmp_path: Any) -> Iterator[WorkerServices]:
    """A stack whose demo provider is under the limiter."""
    file = tmp_path / "models.toml"
    file.write_text(LIMITS)
    settings = stack.settings.model_copy(update={"models_file": file})
    with WorkerServices.open(settings) as opened:
        yield opened


def run(stack: WorkerServices, job: JobView) -> JobView:
    execute(stack, job.id)
    return stack.jobs.get(job.id)


def test_the_answer_of_a_worker_that_was_given_up_is_kept_for_a_retry(
    stack: WorkerServices,
) -> None:
    """It was frozen and not dead: its job failed, and then its answer came."""

    def give_up() -> None:
        with stack.ledger.transaction() as unit:
            unit.session.execute(
                update(Worker).values(heartbeat_at=func.now() - timedelta(seconds=100))
            )
            assert [str(job.state) for job in unit.maintenance.free_lost(60.0)] == ["failed"]

    provider = FakeProvider()
    provider.on_call = give_up
    employ(stack, provider)
    ended = run(stack, stack.jobs.enqueue_generation("Why?", provider="fake", max_retries=0))
    assert (ended.state, ended.error_code) == (JobState.FAILED, "WORKER_LOST")
    assert [call.billing for call in stack.jobs.get_attempts(ended.id)] == [Billing.BILLED]
    again = stack.jobs.retry(ended.id)
    assert again.state is JobState.SUCCEEDED
    assert again.result is not None
    assert again.result["text"] == "You said: Why?"


def test_an_answer_is_kept_where_its_worker_stops_while_the_limiter_is_told(
    limited: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = RateLimiter.settle

    async def settle_late(self: RateLimiter, permit: Any, settlement: Settlement) -> None:
        limited.active_jobs.stop()
        await settle(self, permit, settlement)

    monkeypatch.setattr(RateLimiter, "settle", settle_late)
    ended = run(limited, limited.jobs.enqueue_generation("Why?"))
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)
    assert [call.billing for call in limited.jobs.get_attempts(ended.id)] == [Billing.BILLED]


def test_a_permit_that_comes_when_its_job_was_cancelled_is_given_back(
    limited: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, flights = RateLimiter.acquire, "promptstack:limiter:*:flight"
    in_flight: list[int] = []

    async def acquire_too_late(self: RateLimiter, *asked: Any) -> Any:
        permit = await acquire(self, *asked)
        in_flight.append(len(limited.redis.keys(flights)))
        limited.active_jobs.cancel_lost(limited.active_jobs.claimed(), {})
        return permit

    monkeypatch.setattr(RateLimiter, "acquire", acquire_too_late)
    run(limited, limited.jobs.enqueue_generation("Why?"))
    assert in_flight == [1]
    wait_until(lambda: not limited.redis.keys(flights), "its place in flight to be free")
