"""Progress in Redis can be rebuilt from the ledger, and agrees with it at rest."""

from uuid import uuid4

from promptstack.repositories.models import JobState
from promptstack.services.jobs.progress import Progress
from promptstack.services.llm.errors import (
    InvalidProviderRequest,
    Overloaded,
)
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, employ, raises
from tests.jobs import NO_REDIS, PASSAGE, agrees, another, embed, execute, generate, row, run, state


def test_progress_at_rest_is_what_the_ledger_says_also_after_a_flush(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    done, document, again, refused, cancelled, untouched = (
        generate(stack),
        embed(stack, "a", "b", "c"),
        generate(stack),
        generate(stack),
        generate(stack),
        generate(stack),
    )
    stopped = embed(stack, "d", "e", "f", source="b.txt")
    errors = iter([Overloaded("busy", retry_after=60.0), InvalidProviderRequest("no")])
    for job in (done, document):
        run(stack, job)
    for job in (again, refused):
        provider.on_call = raises(next(errors))
        run(stack, job)
    stack.jobs.cancel(cancelled.id)
    calls = provider.calls
    failing = raises(InvalidProviderRequest("no"))
    provider.on_call = lambda: failing() if provider.calls == calls + 2 else None
    run(stack, stopped)
    states = [state(stack, job) for job in (done, document, again, refused, cancelled, untouched)]
    assert states == ["succeeded", "succeeded", "queued", "failed", "cancelled", "queued"]
    assert (stack.jobs.get(stopped.id).current, stack.jobs.get(stopped.id).total) == (2, 3)
    agrees(stack, done, document, again, refused, cancelled, untouched, stopped)
    assert stack.progress.read([uuid4()]) == {}


def test_progress_moves_with_the_work(stack: WorkerServices, provider: FakeProvider) -> None:
    job = embed(stack, "a", "b", "c", "d", "e")
    seen: list[tuple[JobState, int, int]] = []

    def look() -> None:
        shown = stack.progress.read([job.id])[job.id]
        seen.append((shown.state, shown.current, shown.total))
        if len(seen) == 2:
            stack.redis.flushdb()

    provider.on_call = look
    reported: list[tuple[int, int]] = []
    execute(stack, job.id, lambda shown: reported.append((shown.current, shown.total)))
    assert seen == [(JobState.RUNNING, done, 5) for done in (0, 2, 4)]
    assert reported == [(0, 1), (0, 5), (2, 5), (4, 5), (5, 5)]
    agrees(stack, job)


def test_a_viewer_who_has_seen_the_end_sees_a_second_life_too(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    """Redis was out of reach, and kept what it had, while the job was retried and done."""
    provider.on_call = raises(InvalidProviderRequest("no"))
    job = generate(stack)
    run(stack, job)
    assert stack.progress.read([job.id])[job.id].state is JobState.FAILED
    with another(stack, redis_url=NO_REDIS) as cut_off:
        employ(cut_off, provider)
        cut_off.jobs.retry(job.id)
        assert run(cut_off, job).state is JobState.SUCCEEDED
    now = [float(str(stack.redis.hget(f"promptstack:progress:{job.id}", "updated_at"))) + 6]
    viewer = type(stack.progress)(stack.redis, stack.ledger, ttl_seconds=60, clock=lambda: now[0])
    assert viewer.read([job.id])[job.id].state is JobState.SUCCEEDED


def test_a_stale_entry_gives_way_to_the_ledger(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    job = generate(stack)
    stack.progress.publish(Progress(job.id, JobState.RUNNING, 0, 1))
    with another(stack, redis_url=NO_REDIS) as cut_off:
        cut_off.jobs.cancel(job.id)
    now = [float(str(stack.redis.hget(f"promptstack:progress:{job.id}", "updated_at")))]
    viewer = type(stack.progress)(stack.redis, stack.ledger, ttl_seconds=60, clock=lambda: now[0])
    now[0] += 6
    assert viewer.read([job.id])[job.id].state is JobState.CANCELLED


def test_without_redis_a_job_is_seen_and_done(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    with another(stack, redis_url=NO_REDIS, **PASSAGE) as cut_off:
        employ(cut_off, provider)
        jobs = [generate(cut_off), embed(cut_off, "a", "b", "c")]
        for job in jobs:
            assert run(cut_off, job).state is JobState.SUCCEEDED
            shown = cut_off.progress.read([job.id])[job.id]
            assert shown == Progress.of(row(cut_off, job))
