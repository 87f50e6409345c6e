"""Jobs that another service's Celery has sent: stored once, and their ends told at least once."""

import json
from base64 import b64decode
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery.exceptions import Ignore
from sqlalchemy import text

from promptstack.config.names import Queue, TaskName
from promptstack.repositories.errors import LedgerUnavailable
from promptstack.repositories.models import JobKind, JobState
from promptstack.services.errors import InvalidInput
from promptstack.services.execution.sent_jobs import SentJobs
from promptstack.tasks.app import register_tasks
from promptstack.tasks.sent_requests import holds_request, sent_job
from promptstack.tasks.views.monitors import Monitors
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.jobs import execute

JOB_ID = "01a22bec-0000-7000-8000-000000000001"


def message(
    *args: Any, task: str = TaskName.GENERATE_TEXT, embed: Any = None, **kwargs: Any
) -> dict[str, Any]:
    """A request of Celery, as a worker has read it."""
    return {"id": JOB_ID, "task": task, "args": args, "kwargs": kwargs, "embed": embed}


def store(stack: WorkerServices, request: dict[str, Any]) -> UUID:
    job = sent_job(request)
    stack.loop.run(stack.sent_jobs.store(job))
    return job.id


def age(stack: WorkerServices, seconds: int) -> None:
    """Let all that was noted of these jobs be so much older."""
    with stack.ledger.transaction() as unit:
        for table, column in (
            ("jobs", "finished_at"),
            ("celery_messages", "asked_at"),
            ("celery_messages", "taken_at"),
        ):
            older = f"UPDATE {table} SET {column} = {column} - make_interval(secs => :age)"
            unit.session.execute(text(older), {"age": seconds})


@pytest.mark.parametrize(
    ("args", "kwargs", "is_request"),
    [
        pytest.param([JOB_ID], {}, False, id="id"),
        pytest.param([JOB_ID, "2026-01-01T00:00:00+00:00"], {}, False, id="id-and-time"),
        pytest.param([], {"job": JOB_ID}, False, id="named-id"),
        pytest.param(["Say hello."], {}, True, id="prompt"),
        pytest.param([], {"prompt": JOB_ID}, True, id="named-prompt"),
        pytest.param([], {}, True, id="nothing"),
        pytest.param([17], {}, True, id="number"),
    ],
)
def test_a_request_is_told_from_the_id_of_a_job(
    args: list[Any], kwargs: dict[str, Any], is_request: bool
) -> None:
    assert holds_request(args, kwargs) == is_request


def test_arguments_have_names_and_options_stay(stack: WorkerServices) -> None:
    embed = {"chain": [{"task": "shop.keep"}], "callbacks": None, "chord": None, "errbacks": None}
    request = message("A text.", "a.txt", task=TaskName.GENERATE_EMBEDDINGS, embed=embed, bulk=True)
    job = sent_job({**request, "group": "g", "group_index": 3, "eta": "2030-01-01T00:00:00+00:00"})
    assert (job.kind, job.queue) == (JobKind.EMBEDDING, Queue.EMBEDDINGS_BULK)
    assert job.request == {"text": "A text.", "source": "a.txt"}
    assert job.options == {"chain": [{"task": "shop.keep"}], "group": "g", "group_index": 3}
    assert job.not_before == datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        pytest.param(message("a", "b"), "prompt", id="too-many"),
        pytest.param(message("a", prompt="b"), "prompt", id="twice"),
        pytest.param(message("a", bulk="yes"), "bulk", id="bulk"),
        pytest.param({**message("a"), "id": "order-17"}, "UUID", id="id"),
    ],
)
def test_what_no_job_can_be_made_of_is_said(request_: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        sent_job(request_)


def test_what_cannot_be_stored_is_said(stack: WorkerServices) -> None:
    with pytest.raises(InvalidInput, match="NUL"):
        store(stack, message("a\0b"))
    with pytest.raises(InvalidInput, match="64,000,000"):
        store(stack, message("x" * 64_000_000))
    with pytest.raises(InvalidInput, match="What follows the task has a NUL"):
        store(stack, message("Hello.", embed={"chain": [{"args": ["a\0b"]}]}))
    assert stack.jobs.get_many() == []


def test_a_message_is_one_job_however_often_it_comes(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    request = message("Hello.", provider="fake")
    job_id = store(stack, request)
    assert execute(stack, job_id).is_followed
    assert store(stack, request) == job_id
    assert execute(stack, job_id).state is JobState.SUCCEEDED
    assert (len(stack.jobs.get_many()), fake_llm.calls) == (1, 1)


def test_a_time_of_the_message_is_waited_for_in_the_ledger(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    at = datetime.now(UTC) + timedelta(days=30)
    job_id = store(stack, {**message("Hello.", provider="fake"), "eta": at.isoformat()})
    assert execute(stack, job_id).state is None
    assert stack.jobs.get(job_id).not_before == at
    with stack.ledger.transaction() as unit:
        for column in ("created_at", "not_before", "expires_at"):
            unit.session.execute(
                text(f"UPDATE jobs SET {column} = {column} - interval '30 days 1 minute'")
            )
    assert execute(stack, job_id).state is JobState.SUCCEEDED


def test_its_end_is_told_by_one_worker_and_again_if_that_dies(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    embed = {"chain": [{"task": "shop.keep"}]}
    job_id = store(stack, message("Hello.", provider="fake", embed=embed))
    assert execute(stack, job_id).state is JobState.SUCCEEDED

    take = stack.sent_jobs.take
    assert stack.loop.run(take(job_id)) == embed
    assert stack.loop.run(take(job_id)) is None
    assert stack.outbox.publish() == 0
    waiting = stack.publisher.waiting(Queue.GENERATION)

    age(stack, 31)  # who took it has died
    stack.outbox.publish()
    stack.outbox.publish()
    assert stack.publisher.waiting(Queue.GENERATION) == waiting + 1
    assert stack.loop.run(take(job_id)) == embed
    stack.loop.run(stack.sent_jobs.told(job_id))

    age(stack, 3_600)
    stack.outbox.publish()
    assert stack.publisher.waiting(Queue.GENERATION) == waiting + 1
    assert not execute(stack, job_id).is_followed


def test_a_message_that_could_not_be_stored_goes_back_as_it_was(stack: WorkerServices) -> None:
    """A worker that stops while the ledger is away has it in its memory alone."""
    register_tasks(stack.celery, stack.executor, stack.sent_jobs, Monitors(), stack.loop)
    task: Any = stack.celery.tasks[TaskName.GENERATE_TEXT]
    ended: Future[Any] = Future()
    ended.set_exception(LedgerUnavailable("It is away."))
    then = {"task": "shop.keep", "args": [], "kwargs": {}, "options": {}}
    where = {"exchange": "", "routing_key": "generation"}
    task.push_request(
        id=JOB_ID, is_stored=False, ended=ended, chain=[then], group="g", delivery_info=where
    )
    with pytest.raises(Ignore):
        task(prompt="Hello.")

    [sent] = stack.redis.lrange("generation", 0, -1)
    message_ = json.loads(sent)
    args, kwargs, embed = json.loads(b64decode(message_["body"]))
    assert (message_["headers"]["id"], message_["headers"]["group"]) == (JOB_ID, "g")
    assert (args, kwargs) == ([], {"prompt": "Hello."})
    assert embed["chain"][0]["task"] == "shop.keep"
    assert "Hello." not in str(message_["headers"])


def test_they_belong_to_the_user_of_the_settings(stack: WorkerServices) -> None:
    ada = stack.users.create("ada@example.org")
    jobs = SentJobs(stack.retrying_ledger, "Ada@Example.org")
    stack.loop.run(jobs.store(sent_job(message("Hello."))))
    assert stack.jobs.get(JOB_ID, owner=ada.id).kind is JobKind.GENERATION

    stack.users.change(ada.id, disabled=True)
    with pytest.raises(InvalidInput, match="CELERY_USER"):
        stack.loop.run(jobs.store(sent_job({**message("Hello."), "id": str(uuid4())})))
