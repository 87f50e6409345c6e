"""The end of a job or run is an event, whatever ends it, in the transaction of the end."""

import asyncio
from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import text

from promptstack.config.names import NEW_JOBS_CHANNEL
from promptstack.repositories.models import JobState
from promptstack.repositories.run_models import RunState
from promptstack.repositories.webhook_models import WebhookDelivery, WebhookEndpoint
from promptstack.services.errors import InvalidInput, WrongState
from promptstack.services.jobs.views import JobView
from promptstack.services.llm.errors import InvalidProviderRequest
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.jobs import another, claimed, embed, execute, generate, run, sql, two_users
from tests.runs import work

URL = "https://hooks.example.org/ended"


def endpoint(stack: WorkerServices, user_id: UUID | None = None, **columns: object) -> UUID:
    values = {"url": URL, "user_id": user_id, "secret": "sealed", **columns}
    with stack.ledger.transaction() as unit:
        added: WebhookEndpoint = unit.webhooks.create(**values)
        return added.id


def events(stack: WorkerServices) -> list[tuple[str, UUID]]:
    return [(one.type, one.object_id) for one in deliveries(stack)]


def deliveries(stack: WorkerServices) -> list[WebhookDelivery]:
    with stack.ledger.transaction() as unit:
        return list(unit.webhook_deliveries.get_many())


def succeed(stack: WorkerServices, job: JobView) -> None:
    run(stack, job)


def fail(stack: WorkerServices, job: JobView) -> None:
    with stack.ledger.transaction() as unit:
        claim = unit.steps.claim(job.id, stack.worker_id)
        assert claim is not None
        unit.steps.fail(claim, "BROKEN", "It is broken.")


def cancel_queued(stack: WorkerServices, job: JobView) -> None:
    stack.jobs.cancel(job.id)


def cancel_running(stack: WorkerServices, job: JobView) -> None:
    claimed(stack, job)
    stack.jobs.cancel(job.id)


def expire_queued(stack: WorkerServices, job: JobView) -> None:
    sql(stack, "UPDATE jobs SET expires_at = now()")
    with stack.ledger.transaction() as unit:
        unit.maintenance.expire_overdue()


def expire_in_worker(stack: WorkerServices, job: JobView) -> None:
    claim = claimed(stack, job)
    with stack.ledger.transaction() as unit:
        unit.steps.expire(claim)


def lose_workers(stack: WorkerServices, job: JobView) -> None:
    sql(stack, "UPDATE jobs SET max_retries = 0")
    claimed(stack, job)
    with stack.ledger.transaction() as unit:
        unit.maintenance.free_lost(0.0)


ENDS: dict[str, tuple[Callable[[WorkerServices, JobView], None], str]] = {
    "succeeded": (succeed, "response.completed"),
    "failed": (fail, "response.failed"),
    "cancelled in the queue": (cancel_queued, "response.cancelled"),
    "cancelled in a worker": (cancel_running, "response.cancelled"),
    "expired in the queue": (expire_queued, "response.incomplete"),
    "expired in a worker": (expire_in_worker, "response.incomplete"),
    "given up with its worker": (lose_workers, "response.failed"),
}


@pytest.mark.parametrize("end", ENDS, ids=list(ENDS))
def test_each_way_to_end_is_one_event(
    stack: WorkerServices, fake_llm: FakeProvider, end: str
) -> None:
    endpoint(stack)
    job = generate(stack)
    assert events(stack) == []
    make_it_end, event = ENDS[end]
    make_it_end(stack, job)
    assert events(stack) == [(event, job.id)]


@pytest.mark.parametrize(
    ("reason", "told"),
    [("stop", "completed"), ("length", "incomplete"), ("refusal", "incomplete"), (None, "failed")],
    ids=str,
)
def test_the_end_of_a_response_is_told_by_its_status(
    stack: WorkerServices, fake_llm: FakeProvider, reason: str | None, told: str
) -> None:
    """One of OpenAI's API, where a cut-off answer is incomplete and a deadline is a failure."""
    endpoint(stack)
    made = stack.responses.create({"model": "fake/fake-1"}, "Hello.", user_id=None)
    if reason is None:
        expire_queued(stack, made.job)
    else:
        claim = claimed(stack, made.job)
        with stack.ledger.transaction() as unit:
            unit.steps.succeed(claim, {"text": "x", "finish_reason": reason})
    assert events(stack) == [(f"response.{told}", made.id)]
    assert stack.responses.get(made.id, None).status == told


def test_a_job_that_ends_again_is_another_event(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    endpoint(stack)
    job = generate(stack)
    fail(stack, job)
    stack.jobs.retry(job.id)
    run(stack, job)
    assert events(stack) == [("response.failed", job.id), ("response.completed", job.id)]
    assert len({one.event_id for one in deliveries(stack)}) == 2


def test_an_answer_that_came_after_the_end_is_an_event_when_the_job_is_retried(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    endpoint(stack)
    job = generate(stack)
    stack.jobs.cancel(job.id)
    sql(stack, 'UPDATE jobs SET result = \'{"text": "late"}\'')
    assert stack.jobs.retry(job.id).state is JobState.SUCCEEDED
    assert [event for event, _ in events(stack)] == ["response.cancelled", "response.completed"]


def test_the_end_of_an_embedding_is_an_event(stack: WorkerServices, fake_llm: FakeProvider) -> None:
    endpoint(stack)
    done, overdue = embed(stack, "a"), embed(stack, "b", source="b.txt")
    run(stack, done)
    expire_queued(stack, overdue)
    assert events(stack) == [("embedding.completed", done.id), ("embedding.failed", overdue.id)]


def test_a_run_that_ends_is_one_event_and_its_shards_are_none(stack: WorkerServices) -> None:
    endpoint(stack)
    done = work(stack, stack.runs.generate(["Say 1.", "Say 2."], provider="demo").id)
    assert done.state is RunState.COMPLETED
    other = stack.runs.generate(["Say 3."], provider="demo")
    stack.runs.cancel(other.id)
    assert events(stack) == [("run.completed", done.id), ("run.cancelled", other.id)]


def test_a_run_that_was_only_looked_at_is_no_event(stack: WorkerServices) -> None:
    endpoint(stack)
    stack.runs.discard(stack.runs.prepare_generation(["Say 1."], provider="demo").run_id)
    assert events(stack) == []


def test_an_end_that_is_not_committed_is_no_event(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    endpoint(stack)
    job = generate(stack)
    with stack.ledger.transaction() as unit:
        unit.jobs.cancel(job.id)
        unit.session.rollback()
    assert events(stack) == []


def test_many_that_end_in_one_transaction_are_an_event_each(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    endpoint(stack)
    jobs = [generate(stack, f"Say {n}.") for n in range(30)]

    async def all_of_them() -> None:
        await asyncio.gather(*(stack.executor.run(job.id, lambda _: None, None) for job in jobs))

    stack.loop.run(all_of_them())
    assert sorted(events(stack)) == sorted(("response.completed", job.id) for job in jobs)


# Who is told


def test_endpoints_get_what_they_asked_for_of_their_own_user(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    ada, eve = two_users(stack)
    everything = endpoint(stack, ada)
    failures = endpoint(stack, ada, events=["response.failed", "run.failed"])
    endpoint(stack, eve)
    endpoint(stack, None)
    good, bad = generate(stack, user_id=ada), generate(stack, user_id=ada)
    run(stack, good)
    fail(stack, bad)
    told = {(one.endpoint_id, one.type) for one in deliveries(stack)}
    assert told == {
        (everything, "response.completed"),
        (everything, "response.failed"),
        (failures, "response.failed"),
    }
    same = {one.event_id for one in deliveries(stack) if one.object_id == bad.id}
    assert len(same) == 1, "it is the same event at both"


def test_an_event_of_a_disabled_endpoint_waits(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    endpoint(stack, disabled_at=text("now()"))
    run(stack, generate(stack))
    [waiting] = deliveries(stack)
    assert (waiting.state, waiting.due_at) == ("pending", None)


def test_a_job_names_an_address_of_its_own(stack: WorkerServices, fake_llm: FakeProvider) -> None:
    own = endpoint(stack, url=None)
    job = generate(stack, webhook=URL)
    run(stack, job)
    run(stack, generate(stack, "Without."))
    [told] = deliveries(stack)
    assert (told.endpoint_id, told.url, told.host) == (own, URL, "hooks.example.org")
    assert (told.type, told.object_id) == ("response.completed", job.id)


def test_each_job_of_a_list_and_each_run_names_its_own(stack: WorkerServices) -> None:
    endpoint(stack, url=None)
    entries = [
        {"prompt": "Say 1.", "provider": "demo", "webhook": {"url": f"{URL}/1"}},
        {"text": "Two", "source": "b.txt", "provider": "local", "webhook": {"url": f"{URL}/2"}},
        {"prompt": "Say 3.", "provider": "demo"},
    ]
    for job in stack.jobs.enqueue_many(entries):  # type: ignore[arg-type]
        execute(stack, job.id)
    how = {"provider": "demo", "webhook": f"{URL}/run"}
    work(stack, stack.runs.generate(["Say 4."], **how).id)  # type: ignore[arg-type]
    assert [one.url for one in deliveries(stack)] == [f"{URL}/1", f"{URL}/2", f"{URL}/run"]


def test_a_job_without_a_secret_to_sign_with_names_no_address(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    with pytest.raises(WrongState, match="POST /webhooks/secret"):
        generate(stack, webhook=URL)
    with pytest.raises(WrongState, match="POST /webhooks/secret"):
        stack.runs.generate(["Say 1."], provider="demo", webhook=URL)


def test_an_address_that_leads_inside_is_refused(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    endpoint(stack, url=None)
    with pytest.raises(InvalidInput, match="private network"):
        generate(stack, webhook="https://127.0.0.1/")
    with pytest.raises(InvalidInput, match="private network"):
        stack.runs.generate(["Say 1."], provider="demo", webhook="https://[::1]/")
    with another(stack, webhook_allowed_hosts=["127.0.0.1"]) as allowing:
        allowing.jobs.enqueue_generation("Hello.", provider="demo", webhook="http://127.0.0.1:9/")


def test_a_job_without_a_webhook_writes_nothing_more(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    ada, eve = two_users(stack)
    endpoint(stack, eve)
    run(stack, generate(stack, user_id=ada))
    assert deliveries(stack) == []


def test_a_failed_call_is_no_end(stack: WorkerServices, fake_llm: FakeProvider) -> None:
    endpoint(stack)

    def refuse() -> None:
        raise InvalidProviderRequest("No.")

    fake_llm.on_call = refuse
    job = generate(stack)
    run(stack, job)
    assert events(stack) == [("response.failed", job.id)]


def test_workers_hear_of_a_new_event_as_its_transaction_commits(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    job = generate(stack)
    with stack.ledger.listening(NEW_JOBS_CHANNEL) as listener:
        stack.jobs.cancel(job.id)
        assert not listener.wait(0.2), "nobody has a webhook"
        stack.webhooks.create("https://example.org/")
        stack.jobs.cancel(generate(stack, "Another.").id)
        assert listener.wait(30)
