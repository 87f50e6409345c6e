"""A rate limit costs no retry. The limiter itself: tests/integration/limiter/test_limiter.py."""

from promptstack.repositories.models import JobState
from promptstack.services.llm.errors import (
    InvalidProviderRequest,
    Overloaded,
    ProviderError,
    RateLimited,
)
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, raises
from tests.jobs import attempts, generate, make_due, row, run


def test_a_rate_limit_costs_no_retry_and_waits_as_long_as_told(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    provider.on_call = raises(*(RateLimited("slow down", retry_after=90.0) for _ in range(6)))
    job = generate(stack, max_retries=0)
    for tries in range(1, 7):
        assert run(stack, job).state is JobState.QUEUED
        waiting, attempt = row(stack, job), attempts(stack, job)[-1]
        assert (waiting.attempt, waiting.failures) == (tries, 0)
        assert (waiting.error_code, attempt.error_code) == ("RATE_LIMITED", "RATE_LIMITED")
        assert waiting.not_before is not None
        assert attempt.finished_at is not None
        assert (waiting.not_before - attempt.finished_at).total_seconds() >= 90.0
        make_due(stack, job)
    assert run(stack, job).state is JobState.SUCCEEDED
    assert stack.jobs.get(job.id).failures == 0


def test_other_errors_cost_retries_and_then_the_job_ends(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    failures: list[ProviderError] = [RateLimited("slow down"), Overloaded("busy")]
    failures += [RateLimited("slow down"), Overloaded("busy"), Overloaded("busy")]
    provider.on_call = raises(*failures)
    job = generate(stack, max_retries=2)
    for _ in failures:
        run(stack, job)
        make_due(stack, job)
    ended = stack.jobs.get(job.id)
    assert (ended.state, ended.attempt, ended.failures) == (JobState.FAILED, 5, 3)
    assert ended.error_code == "PROVIDER_OVERLOADED"
    refused = generate(stack)
    provider.on_call = raises(InvalidProviderRequest("no"))
    assert run(stack, refused).state is JobState.FAILED
    assert provider.calls == 6
