"""What becomes of work whose workers die: it is nobody's fault, until one item stands alone."""

import json
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from promptstack.config.names import Queue
from promptstack.repositories.models import JobKind, JobState
from promptstack.repositories.run_models import RunState
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.documents.chunking import Chunker
from promptstack.services.jobs.progress import Progress
from promptstack.services.jobs.publishing import BrokerUnavailable, JobMessage
from promptstack.services.llm.packing import EmbeddingLimits
from promptstack.services.maintenance.liveness import Liveness
from promptstack.services.runs.shards.bisection import bisect_shard
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.jobs import execute
from tests.processes import join, wait_until
from tests.reconcilers import outbox_of
from tests.runs import failures, in_ledger

MOST_DEATHS = 20
"""More than any of these tests needs: a search without an end fails."""


class WorkerDied(BaseException):
    """Stands for the end of a process: nothing after it runs, and nothing is stored."""


class Fragile(FakeProvider):
    """Embeds; a text that says so ends the worker before its call is made."""

    name = "fragile"
    limits = EmbeddingLimits(items=8, bytes=10_000)

    def tokens(self, text: str) -> int:
        if "kills" in text:
            raise WorkerDied
        return 1


class FragileShards(Fragile):
    """Looks at all texts of a shard before it makes the first call."""

    name = "fragile-shards"
    limits = EmbeddingLimits(items=8, bytes=10_000, tokens=10_000)


@pytest.fixture(autouse=True)
def fragile(stack: WorkerServices) -> Fragile:
    return Fragile().serve(stack)


def free(stack: WorkerServices) -> None:
    """The worker of every running job is missed."""
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("DELETE FROM workers"))
        unit.maintenance.free_lost(60.0)


def work_until_done(stack: WorkerServices, is_done: Callable[[], bool]) -> int:
    """Run what is queued, with a new worker after each death; how many died."""
    deaths = 0
    while not is_done():
        with stack.ledger.transaction() as unit:
            query = text("SELECT id FROM jobs WHERE state = 'queued' ORDER BY id")
            queued = unit.session.scalars(query).all()
        for job_id in queued:
            try:
                execute(stack, job_id)
            except WorkerDied:
                deaths += 1
                free(stack)
        stack.run_lifecycle.run_once()
        assert deaths < MOST_DEATHS
    return deaths


def lose(stack: WorkerServices, job_id: UUID, *, done: int | None = None, total: int = 10) -> None:
    """Let a worker die over a job, after it has done so much of it."""
    with stack.ledger.transaction() as unit:
        claim = unit.steps.claim(job_id, uuid4())
        assert claim is not None
        if done is not None:
            unit.steps.set_progress(claim, done, total)
    free(stack)


def test_an_item_that_kills_workers_is_found_and_fails_alone(stack: WorkerServices) -> None:
    texts = [f"text {number}" for number in range(16)]
    texts[11] = "it kills"
    fragile = FragileShards().serve(stack)
    run = stack.runs.embed(texts, provider=fragile.name)
    deaths = work_until_done(stack, lambda: stack.runs.get(run.id).state.is_final)
    done = stack.runs.get(run.id)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 15, 1)
    assert failures(stack, done) == {"12": "WORKER_LOST"}
    assert sorted(fragile.embedded) == sorted(set(texts) - {"it kills"}), "each is paid once"
    # Two for the whole, one for each half that it is in, and then its own tries and one more.
    assert deaths == 2 + 3 + stack.settings.job_max_retries + 1


def test_a_shard_that_gets_on_may_lose_any_number_of_workers(stack: WorkerServices) -> None:
    run = stack.runs.embed([f"text {number}" for number in range(16)], provider="fragile")
    shard = in_ledger(stack, "SELECT id FROM jobs WHERE kind = 'shard'")
    for done in range(1, 12):
        lose(stack, shard, done=done)
    query = "SELECT (count(*), sum(deaths), sum(failures)) FROM jobs WHERE kind = 'shard'"
    assert in_ledger(stack, query) == "(1,1,0)", "one death since it last got on"
    work_until_done(stack, lambda: stack.runs.get(run.id).state.is_final)
    assert stack.runs.get(run.id).succeeded == 16


def test_a_shard_is_halved_once_where_the_answer_to_the_commit_was_lost(
    stack: WorkerServices,
) -> None:
    run = stack.runs.embed([f"text {number}" for number in range(16)], provider="fragile")
    shard = in_ledger(stack, "SELECT id FROM jobs WHERE kind = 'shard'")
    lose(stack, shard)
    lose(stack, shard)
    with stack.ledger.transaction() as unit:
        claim = unit.steps.claim(shard, uuid4())
        whole = unit.runs.get(run.id)
    assert claim is not None
    assert whole is not None
    for _ in range(2):
        with stack.ledger.transaction() as unit:
            left = bisect_shard(unit, claim, whole, stack.shard_scheduler.add_shard)
        assert (left.first, left.last) == (1, 8)
    ranges = "SELECT string_agg(request::text, ' ' ORDER BY id) FROM jobs WHERE kind = 'shard'"
    assert in_ledger(stack, ranges) == '{"last": 8, "first": 1} {"last": 16, "first": 9}'


def test_a_document_stores_all_chunks_before_the_one_that_kills_workers(
    stack: WorkerServices,
    fragile: Fragile,
) -> None:
    chunks = [f"# Part {number}\n\n" + f"word{number} " * 300 for number in range(12)]
    chunks[9] = "# Part 9\n\n" + "kills " * 300
    job = stack.jobs.enqueue_embedding("\n\n".join(chunks), source="a.md", provider="fragile")
    work_until_done(stack, lambda: stack.jobs.get(job.id).state.is_final)
    ended = stack.jobs.get(job.id)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "WORKER_LOST")
    assert len(fragile.embedded) == len(set(fragile.embedded)), "no chunk is paid for twice"
    assert any("word8" in asked for asked in fragile.embedded)
    assert ended.current == len(fragile.embedded)


def test_a_document_that_kills_workers_during_chunking_gets_no_extra_attempts(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise WorkerDied

    monkeypatch.setattr(Chunker, "cut", die)
    job = stack.jobs.enqueue_embedding("it kills", source="a.md", provider="fragile")
    deaths = work_until_done(stack, lambda: stack.jobs.get(job.id).state.is_final)
    ended = stack.jobs.get(job.id)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "WORKER_LOST")
    assert deaths == stack.settings.job_max_retries + 1


def test_deaths_from_before_a_document_got_on_count_no_more(
    stack: WorkerServices, fragile: Fragile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes over a chunk, alone, that another job had begun to pay for and gave up."""

    def die(*_: object) -> None:
        raise WorkerDied

    def give_up_the_last(shown: Progress) -> None:
        is_held = stack.jobs.get(other.id).state is JobState.RUNNING
        if is_held and shown.current == shown.total - 1:
            with stack.ledger.transaction() as unit:
                unit.steps.fail(holder, "GONE", "It is over.")

    document = "\n\n".join(f"# Part {n}\n\n" + f"word{n} " * 300 for n in range(4))
    job = stack.jobs.enqueue_embedding(document, source="a.md", provider="fragile")
    other = stack.jobs.enqueue_embedding("other", source="b.md", provider="fragile")
    with monkeypatch.context() as patched:
        patched.setattr(fragile, "tokens", die)
        with pytest.raises(WorkerDied):
            execute(stack, job.id)
    free(stack)
    with stack.ledger.transaction() as unit:
        claim = unit.steps.claim(other.id, uuid4())
        assert claim is not None
        holder = claim
        *_, last = stack.chunker.cut(document, "a.md")
        unit.session.execute(text("DELETE FROM reservations"))
        assert unit.reservations.take(holder, [last.content_hash])
        unit.session.execute(text("UPDATE jobs SET deaths = 4"))
    assert execute(stack, job.id, give_up_the_last).state is JobState.SUCCEEDED
    assert stack.jobs.get(other.id).state is JobState.FAILED
    assert len(fragile.embedded) == stack.jobs.get(job.id).total


class StuckPublisher:
    """A broker that takes a message and never says so."""

    def __init__(self) -> None:
        self.is_asked = threading.Event()
        self.may_answer = threading.Event()

    def epoch(self, max_age: float = 0.0) -> str:
        return "epoch"

    def uptime(self) -> float | None:
        return None

    def waiting(self, queue: Any) -> int:
        return 0

    def publish(self, messages: Sequence[JobMessage]) -> str:
        raise AssertionError("monitors know of these jobs")

    def publish_all(self, messages: Sequence[JobMessage]) -> None:
        if messages:
            self.is_asked.set()
            self.may_answer.wait(60.0)


class PublisherThatWasAway(StuckPublisher):
    """A broker that answers from the second time on."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[list[UUID]] = []
        self.is_away = True

    def publish_all(self, messages: Sequence[JobMessage]) -> None:
        if self.is_away:
            self.is_away = False
            raise BrokerUnavailable("The broker is away.")
        self.sent.append([message.job_id for message in messages])


def test_what_ended_while_the_broker_was_away_is_told_later(stack: WorkerServices) -> None:
    publisher = PublisherThatWasAway()
    outbox = outbox_of(stack, publisher=publisher)
    job = stack.jobs.enqueue_generation("x")
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("UPDATE jobs SET expires_at = now() - interval '1 s'"))
    stack.liveness.run_once()
    for _ in range(3):
        outbox.publish()
    assert stack.jobs.get(job.id).state is JobState.EXPIRED
    assert [sent for sent in publisher.sent if sent] == [[job.id]]


def test_dead_workers_are_missed_while_messages_take_long(stack: WorkerServices) -> None:
    """The rounds of all reconcilers together would else look like an outage of the ledger."""
    now = [1_000.0]

    class Clock:
        def __call__(self, unit: UnitOfWork) -> datetime:
            return datetime.fromtimestamp(now[0], UTC)

    liveness = Liveness(stack.ledger, worker_lost_seconds=12.0, clock=Clock())
    publisher = StuckPublisher()
    outbox = outbox_of(stack, publisher=publisher, liveness=liveness)
    due = stack.jobs.enqueue_generation("to be published")
    with stack.ledger.transaction() as unit:
        query = "UPDATE jobs SET rung_at = NULL, created_at = now() - interval '1 h' WHERE id = :id"
        unit.session.execute(text(query), {"id": due.id})
    messages = threading.Thread(target=outbox.publish)
    messages.start()
    try:
        wait_until(publisher.is_asked.is_set, "the messages to be sent")
        held = stack.jobs.enqueue_generation("held by the dead")
        with stack.ledger.transaction() as unit:
            assert unit.steps.claim(held.id, uuid4()) is not None
        for _ in range(14):
            liveness.run_once()
            now[0] += 1.0
        assert stack.jobs.get(held.id).state is JobState.QUEUED
    finally:
        publisher.may_answer.set()
        join(messages)


def test_a_worker_that_freezes_while_watching_loses_its_lock_first(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody can watch for half the heartbeat timeout, nobody is dead."""
    monkeypatch.setattr(
        "promptstack.repositories.timeouts.IDLE_SECONDS", 3_600
    )  # of other transactions
    ledger = Ledger(stack.database_url)
    assert watches(stack)  # and it is connected, so that the next time takes no half a second
    with ledger.transaction() as unit:
        unit.limit_statements(4.0, idle=0.5)
        assert unit.try_lock("watch")
        assert not watches(stack)
        wait_until(lambda: watches(stack), "the others to watch again")
        with pytest.raises(DBAPIError):
            unit.now()
        unit.session.rollback()
    ledger.close()


def watches(stack: WorkerServices) -> bool:
    with stack.ledger.transaction() as unit:
        return unit.try_lock("watch")


def test_more_jobs_than_one_transaction_s_worth_are_freed_in_a_round(stack: WorkerServices) -> None:
    lost = stack.settings.worker_lost_seconds
    liveness = Liveness(stack.ledger, worker_lost_seconds=lost, batch=2)
    jobs = [stack.jobs.enqueue_generation("x").id for _ in range(5)]
    with stack.ledger.transaction() as unit:
        for job_id in jobs:
            assert unit.steps.claim(job_id, uuid4()) is not None
        unit.maintenance.note_watch(unit.now().timestamp() - 0.1, [])
    liveness.run_once()
    assert {job.state for job in stack.jobs.get_many()} == {JobState.QUEUED}
    assert {job.id for job in liveness.take_changed()} == set(jobs)
    assert liveness.take_changed() == []


def test_many_messages_take_few_exchanges_and_say_what_one_says(stack: WorkerServices) -> None:
    sent = [
        JobMessage(uuid4(), JobKind.GENERATION, Queue.GENERATION, "demo", "demo-1")
        for _ in range(300)
    ]
    stack.publisher.publish(sent[:1])
    stack.publisher.publish_all(sent[:1])  # connects
    before = exchanges(stack)
    stack.publisher.publish_all(sent[1:])
    assert exchanges(stack) - before < 100, "one for each would be 299"
    alone, together, *others = (
        json.loads(message) for message in reversed(stack.redis.lrange(Queue.GENERATION, 0, -1))
    )
    assert [other["headers"]["id"] for other in others] == [str(one.job_id) for one in sent[1:]]
    for one in (alone, together):
        # What differs from message to message, and what Celery says twice.
        for name in ("delivery_tag", "reply_to", "argsrepr", "kwargsrepr"):
            one["properties"].pop(name, None)
    assert together == alone


def exchanges(stack: WorkerServices) -> int:
    """How often the server has read from a connection."""
    return int(stack.redis.info("stats")["total_reads_processed"])
