"""Bulk jobs of several users are sent to workers in turns, and only a few ahead."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import event, text

from promptstack.config.names import Queue
from promptstack.config.settings import Settings
from promptstack.repositories.models import JobState
from promptstack.services.jobs.entries import GenerationEntry
from promptstack.services.jobs.publishing import BrokerUnavailable
from promptstack.services.sharing.bulk_jobs import BULK_QUEUES
from promptstack.services.sharing.turns import NOBODY
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute
from tests.processes import PATIENCE, wait_until
from tests.reconcilers import outbox_of

AHEAD = 6
"""Messages that are sent ahead where a worker has three jobs in hand."""
BACKLOG = """
INSERT INTO jobs (id, kind, queue, state, user_id, provider, model, request, request_hash,
                  max_retries, expires_at)
SELECT gen_random_uuid(), 'generation', 'generation-bulk', 'queued', :user, 'demo', 'demo', '{}',
       '', 3, now() + interval '1 day'
FROM generate_series(1, 100000)
"""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"worker_concurrency": 3})


def sql(stack: WorkerServices, statement: str, **given: object) -> list[Any]:
    with stack.ledger.transaction() as unit:
        result: Any = unit.session.execute(text(statement), given)
        return list(result.all()) if result.returns_rows else []


def add_user(stack: WorkerServices, name: str, tier: str = "free") -> UUID:
    with stack.ledger.transaction() as unit:
        id_: UUID = unit.users.create(email=f"{name}@example.com", tier=tier).id
    return id_


def enqueue(stack: WorkerServices, user: UUID | None, count: int) -> None:
    stack.bulk_jobs._rests_until.update(dict.fromkeys(BULK_QUEUES, 0.0))  # none was sent lately
    entry: GenerationEntry = {"prompt": "x", "bulk": True, "provider": "demo"}
    if user is not None:
        entry["user_id"] = user
    stack.jobs.enqueue_many([entry] * count)


def sent(stack: WorkerServices) -> int:
    return stack.publisher.waiting(Queue.GENERATION_BULK)


def take(stack: WorkerServices, count: int) -> list[UUID | None]:
    """Do what a worker does with so many messages: the jobs end. Returns whose they were."""
    users = []
    redis: Redis = stack.redis
    for _ in range(count):
        message = redis.rpop(str(Queue.GENERATION_BULK))
        if message is None:
            break
        [row] = sql(
            stack,
            "UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE id = :id "
            "RETURNING user_id",
            id=_id_in(message),
        )
        users.append(row[0])
    return users


def _id_in(message: Any) -> str:

    return str(json.loads(message)["headers"]["id"])


def drain(stack: WorkerServices, count: int) -> list[UUID | None]:
    users: list[UUID | None] = []
    while len(users) < count:
        some = take(stack, 3)
        if not some:
            break
        users += some
        stack.bulk_jobs.give_out()
    return users


def test_a_users_many_jobs_do_not_stand_before_anothers_one(stack: WorkerServices) -> None:
    many, single = add_user(stack, "many"), add_user(stack, "single")
    enqueue(stack, many, 500)
    assert sent(stack) == AHEAD
    enqueue(stack, single, 1)
    assert single in drain(stack, AHEAD + 3)


def test_users_have_jobs_by_the_weight_of_their_tier(stack: WorkerServices) -> None:
    users = {tier: add_user(stack, tier, tier) for tier in ("free", "pro", "enterprise")}
    for user in users.values():
        enqueue(stack, user, 100)
    drain(stack, AHEAD)  # the first came alone
    got = Counter(drain(stack, 70))
    assert [got[user] for user in users.values()] == pytest.approx([10, 20, 40], abs=3)


def test_who_is_alone_has_all_and_a_users_jobs_go_in_the_order_they_came(
    stack: WorkerServices,
) -> None:
    user = add_user(stack, "alone")
    enqueue(stack, user, 40)
    order = [row[0] for row in sql(stack, "SELECT id FROM jobs ORDER BY id")]
    assert drain(stack, 100) == [user] * 40
    done = [row[0] for row in sql(stack, "SELECT id FROM jobs ORDER BY finished_at, id")]
    assert done == order
    assert sent(stack) == 0


def test_a_user_with_few_jobs_leaves_the_rest_to_others(stack: WorkerServices) -> None:
    few, many = add_user(stack, "few"), add_user(stack, "many")
    sql(stack, "INSERT INTO turns (shared, last) VALUES ('generation-bulk', NULL)")
    stack.bulk_jobs._jobs_a_worker = 0
    enqueue(stack, few, 2)
    enqueue(stack, many, 100)
    stack.bulk_jobs._jobs_a_worker = 20
    stack.bulk_jobs.give_out()
    assert sent(stack) == 40
    assert Counter(take(stack, 40)) == {few: 2, many: 38}


def test_jobs_without_a_user_are_those_of_one_user(stack: WorkerServices) -> None:
    user = add_user(stack, "one")
    enqueue(stack, None, 50)
    enqueue(stack, user, 50)
    drain(stack, AHEAD)
    assert 13 <= drain(stack, 30).count(user) <= 17


def test_a_worker_sends_more_when_jobs_have_ended(stack: WorkerServices) -> None:
    enqueue(stack, None, 50)
    for _ in range(2):
        take(stack, 4)
        stack.bulk_jobs.after_job()
        wait_until(lambda: sent(stack) == AHEAD, "more jobs are sent")


def add(stack: WorkerServices, *, bulk: bool) -> UUID:
    return stack.jobs.enqueue_generation("x", provider="demo", bulk=bulk).id


def test_jobs_that_are_added_one_after_the_other_are_sent_in_a_moment(
    stack: WorkerServices,
) -> None:
    """No worker runs, and so nobody else sends them."""
    add(stack, bulk=True)
    assert sent(stack) == 1
    for _ in range(2):
        add(stack, bulk=True)
    wait_until(lambda: sent(stack) == 3, "all jobs are sent")
    stack.jobs.enqueue_embedding("text", source="a", bulk=True)
    assert stack.publisher.waiting(Queue.EMBEDDINGS_BULK) == 1, "of another queue, at once"


def test_who_adds_many_bulk_jobs_does_not_send_some_after_each(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are stored by one transaction each, as others are; the rest is done beside it."""
    transactions, asked = Counter[int](), Counter[int]()
    counted = stack.publisher.waiting

    def waiting(queue: Queue) -> int:
        asked[threading.get_ident()] += 1
        return counted(queue)

    def count(*_: object) -> None:
        transactions[threading.get_ident()] += 1

    monkeypatch.setattr(stack.publisher, "waiting", waiting)
    monkeypatch.setattr(stack.bulk_jobs, "_clock", lambda: 0.0)
    caller = threading.get_ident()
    add(stack, bulk=True)
    event.listen(stack.ledger.engine, "checkout", count)
    try:
        for _ in range(20):
            add(stack, bulk=False)
        of_others = transactions.pop(caller)
        asked.clear()
        for _ in range(20):
            add(stack, bulk=True)
    finally:
        event.remove(stack.ledger.engine, "checkout", count)
    assert transactions[caller] == of_others == 20
    assert not asked[caller]


def test_an_unexpected_error_fails_nothing_that_is_done(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(queue: Queue) -> int:
        raise KeyError(queue)

    enqueue(stack, None, 50)
    monkeypatch.setattr(stack.publisher, "waiting", fail)
    enqueue(stack, None, 1)
    add(stack, bulk=True)
    assert sql(stack, "SELECT count(*) FROM jobs") == [(52,)]
    done = add(stack, bulk=False)
    assert execute(stack, done).state is JobState.SUCCEEDED
    sql(stack, "UPDATE jobs SET rung_at = NULL, created_at = now() - interval '1 h'")
    lost = add(stack, bulk=False)
    sql(stack, "UPDATE jobs SET rung_at = NULL WHERE id = :id", id=lost)
    sql(stack, "UPDATE jobs SET created_at = now() - interval '1 h' WHERE id = :id", id=lost)
    outbox_of(stack).publish()
    assert sql(stack, "SELECT rung_at IS NOT NULL FROM jobs WHERE id = :id", id=lost) == [(True,)]
    stack.bulk_jobs.close()
    assert "bulk jobs could not be sent" in caplog.text


def test_a_job_waits_for_nobody_who_sends_others(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its task nor its place in the worker: its answer is stored."""
    enqueue(stack, None, 50)
    begun, may_end = threading.Event(), threading.Event()

    def give_out(_: object) -> None:
        begun.set()
        assert may_end.wait(PATIENCE)

    job_id = add(stack, bulk=False)
    monkeypatch.setattr(stack.bulk_jobs, "give_out", give_out)
    try:
        running = stack.loop.submit(stack.executor.run(job_id, lambda _: None))
        assert running.result(timeout=30).state is JobState.SUCCEEDED
        assert begun.wait(timeout=30)
    finally:
        may_end.set()


def test_what_was_left_is_sent_by_the_reconciler(stack: WorkerServices) -> None:
    enqueue(stack, None, 50)
    take(stack, 6)
    outbox_of(stack).publish()
    assert sent(stack) == AHEAD


def test_bulk_jobs_wait_for_a_broker_that_is_away(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> int:
        raise BrokerUnavailable("The broker does not answer.")

    with monkeypatch.context() as patched:
        patched.setattr(stack.publisher, "waiting", away)
        enqueue(stack, None, 3)
    with monkeypatch.context() as patched:
        patched.setattr(stack.publisher, "publish", away)
        stack.bulk_jobs.give_out()
    assert sql(stack, "SELECT count(*) FROM jobs WHERE rung_at IS NULL") == [(3,)]
    outbox_of(stack).publish()
    assert sent(stack) == 3
    assert {job.state for job in stack.jobs.get_many()} == {JobState.QUEUED}


def test_a_job_that_is_given_back_waits_for_its_users_turn(stack: WorkerServices) -> None:
    enqueue(stack, None, 1)
    [(job_id,)] = sql(stack, "SELECT id FROM jobs")
    with stack.ledger.transaction() as unit:
        claim = unit.steps.claim(job_id, stack.worker_id)
        assert claim is not None
        unit.steps.release(job_id, claim.attempt)
    take(stack, 0)
    stack.redis.delete(str(Queue.GENERATION_BULK))
    outbox_of(stack).publish()
    assert sent(stack) == 1


@pytest.fixture
def plans(stack: WorkerServices) -> Iterator[list[str]]:
    """The plans of all statements about jobs, explained before they run."""
    seen: list[str] = []

    def explain(_c: object, cursor: Any, statement: str, given: Any, *_: object) -> None:
        if "jobs" in statement and not statement.startswith(("EXPLAIN", "INSERT", "ANALYZE")):
            cursor.execute("EXPLAIN " + statement, given)
            seen.append("\n".join(row[0] for row in cursor.fetchall()))

    sql(stack, BACKLOG, user=add_user(stack, "many"))
    sql(stack, BACKLOG, user=None)
    sql(stack, "ANALYZE jobs")
    event.listen(stack.ledger.engine, "before_cursor_execute", explain)
    yield seen
    event.remove(stack.ledger.engine, "before_cursor_execute", explain)


def test_no_statement_reads_the_backlog(stack: WorkerServices, plans: list[str]) -> None:
    stack.bulk_jobs.give_out([Queue.GENERATION_BULK])
    assert sent(stack) == AHEAD
    outbox_of(stack).publish()
    assert len(plans) >= 3
    for plan in plans:
        assert "Seq Scan on jobs" not in plan, plan
    assert any("jobs_held" in plan for plan in plans)
    with stack.ledger.transaction() as unit:
        assert len(unit.held_jobs.users(Queue.GENERATION_BULK, NOBODY, 10)) == 2
        epoch = stack.publisher.epoch()
    with stack.ledger.statement() as statement:
        signs = statement.signs.of_messages(epoch, 10.0)
    assert signs.held == [Queue.GENERATION_BULK]
    assert not signs.due
