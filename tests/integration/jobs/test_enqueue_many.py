"""Many jobs in one call: all of them or none, in one transaction, with one exchange of messages."""

import json
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from promptstack.config.errors import PromptStackError
from promptstack.repositories.errors import LedgerCrowded, LedgerUnavailable
from promptstack.repositories.jobs.new_jobs import COPIED_FROM, NewJobRepository
from promptstack.repositories.models import Job, JobKind, JobState
from promptstack.repositories.session import Ledger
from promptstack.services.errors import IdempotencyConflict, InvalidInput, NotFound, UnknownProvider
from promptstack.services.jobs.enqueue import MAX_JOBS_AT_ONCE
from promptstack.services.jobs.views import JobView
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve
from tests.jobs import as_accepted
from tests.processes import PATIENCE, wait_until

BULK = "/api/v1/jobs/bulk"


def enqueue_many(
    stack: WorkerServices, entries: Sequence[dict[str, Any]], session: Session | None = None
) -> list[JobView]:
    return stack.jobs.enqueue_many(cast("Any", entries), session=session)


def rows(stack: WorkerServices) -> tuple[int, int]:
    """How many jobs and documents there are."""
    with stack.ledger.transaction() as unit:
        counts = unit.session.execute(
            text("SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM documents)")
        ).one()
    return counts[0], counts[1]


def sent(stack: WorkerServices, queue: str = "generation") -> list[str]:
    """The jobs whose messages wait, in the order in which they are taken."""
    raw: Any = stack.redis.lrange(queue, 0, -1)
    return [json.loads(b64decode(json.loads(one)["body"]))[0][0] for one in reversed(raw)]


def stored(stack: WorkerServices, job_id: UUID) -> Job:
    with stack.ledger.transaction() as unit:
        found = unit.jobs.get(job_id)
        assert found is not None
        _ = found.request
        return found


@pytest.fixture
def user(stack: WorkerServices) -> UUID:
    with stack.ledger.transaction() as unit:
        return unit.users.create(email="ada@example.org").id


@pytest.fixture
def client(stack: WorkerServices) -> Iterator[TestClient]:
    with serve(stack) as client:
        yield client


def test_both_kinds_are_accepted_in_order_with_all_that_they_say(
    stack: WorkerServices, user: UUID
) -> None:
    entries: list[dict[str, Any]] = [
        {"prompt": 'ünïcode \\ "quoted" {braces}, NULL', "user_id": user},
        {"text": "A text.", "source": "a", "max_retries": 0, "expires_in": 60.0},
        {"messages": [{"role": "user", "content": "Hello."}], "temperature": 0.5, "bulk": True},
        {"text": "Mine.", "source": "a", "user_id": user, "chunk_tokens": 16, "bulk": True},
        {"prompt": "x", "idempotency_key": "k"},
    ]
    jobs = enqueue_many(stack, entries)
    kinds = [JobKind.EMBEDDING if "text" in entry else JobKind.GENERATION for entry in entries]
    assert [job.kind for job in jobs] == kinds
    assert jobs == [as_accepted(stack.jobs.get(job.id)) for job in jobs]
    singles = [
        stack.jobs.enqueue_embedding(**entry)
        if "text" in entry
        else stack.jobs.enqueue_generation(**{**entry, "idempotency_key": None})
        for entry in entries
    ]
    for many, single in zip(jobs, singles, strict=True):
        one, other = stored(stack, many.id), stored(stack, single.id)
        assert one.request == other.request
        for name in ("queue", "user_id", "request_hash", "max_retries", "provider", "model"):
            assert getattr(one, name) == getattr(other, name), name
        assert one.published_epoch == stack.publisher.epoch()
    assert rows(stack) == (10, 2)
    ids = [str(job.id) for job in (*jobs, *singles)]
    assert sent(stack) == [ids[0], ids[4], ids[5], ids[9]]
    # Bulk jobs are sent in turns between users, within a moment.
    bulk = [ids[3], ids[8]]
    wait_until(lambda: sent(stack, "embeddings-bulk") == bulk, "the bulk jobs to be sent")


def test_five_hundred_take_few_exchanges_with_either_server(stack: WorkerServices) -> None:
    statements: list[str] = []
    stack.jobs.enqueue_generation("connects")

    @event.listens_for(stack.ledger.engine, "commit")
    def commits(_: object) -> None:
        statements.append("COMMIT")

    before = stack.redis.info("stats")["total_commands_processed"]
    jobs = enqueue_many(stack, [{"prompt": f"{number}"} for number in range(500)])
    after = stack.redis.info("stats")["total_commands_processed"]
    assert after - before <= 5
    assert statements == ["COMMIT"]
    assert sent(stack)[1:] == [str(job.id) for job in jobs]


def test_a_list_asks_once_what_its_user_prefers_and_whether_a_worker_has_the_key(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stack.ledger.transaction() as unit:
        user = unit.users.create(email="ada@example.org", preferred_provider="openai").id
        unit.heartbeats.beat(uuid4(), "host", 1, providers=["openai"])
    commits: list[object] = []
    event.listen(stack.ledger.engine, "commit", commits.append)
    assert not stack.factory.is_set_up("openai")
    jobs = enqueue_many(stack, [{"prompt": f"{number}", "user_id": user} for number in range(20)])
    assert {job.provider for job in jobs} == {"openai"}
    # What the user prefers, who has the key, and the jobs.
    assert len(commits) == 3


BAD: dict[str, tuple[dict[str, Any], type[PromptStackError]]] = {
    "no prompt": ({}, InvalidInput),
    "an empty prompt": ({"prompt": " "}, InvalidInput),
    "an unknown provider": ({"prompt": "x", "provider": "opnai"}, UnknownProvider),
    "an unknown field": ({"prompt": "x", "colour": "red"}, InvalidInput),
    "an unknown field of a document": (
        {"text": "x", "source": "a", "prompt": "y"},
        InvalidInput,
    ),
    "no source": ({"text": "x"}, InvalidInput),
    "a fallback that is a name": ({"prompt": "x", "fallbacks": ["demo"]}, InvalidInput),
    "fallbacks that are one": ({"prompt": "x", "fallbacks": {"provider": "demo"}}, InvalidInput),
    "a fallback without a provider": ({"prompt": "x", "fallbacks": [{}]}, InvalidInput),
    "a text that is none": ({"text": 5, "source": "a"}, InvalidInput),
    "an unknown user": ({"prompt": "x", "user_id": uuid4()}, NotFound),
    "an unknown user's document": (
        {"text": "x", "source": "a", "user_id": uuid4()},
        NotFound,
    ),
    "a key of another request": (
        {"prompt": "x", "idempotency_key": "taken"},
        IdempotencyConflict,
    ),
    "the key of an entry before": (
        {"prompt": "x", "idempotency_key": "first"},
        IdempotencyConflict,
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_entry_is_named_and_takes_all_with_it(stack: WorkerServices, fault: str) -> None:
    stack.jobs.enqueue_generation("taken", idempotency_key="taken")
    entry, kind = BAD[fault]
    good = [{"prompt": "a", "idempotency_key": "first"}, {"text": "b", "source": "b"}]
    with pytest.raises(kind, match=r"^jobs\[2\]: "):
        enqueue_many(stack, [*good, entry, {"prompt": "last"}])
    assert rows(stack) == (1, 0)
    assert len(sent(stack)) == 1


@pytest.mark.parametrize("entries", [None, "abc", {"prompt": "x"}, iter([dict[str, Any]()])])
def test_what_is_no_list_is_refused_in_a_sentence(stack: WorkerServices, entries: Any) -> None:
    with pytest.raises(InvalidInput, match="must be a list"):
        enqueue_many(stack, entries)


@pytest.mark.parametrize("entry", [None, "abc", 5, ["prompt"]])
def test_an_entry_that_is_no_mapping_is_refused_in_a_sentence(
    stack: WorkerServices, entry: Any
) -> None:
    with pytest.raises(InvalidInput, match=r"^jobs\[1\]: A job must be a mapping"):
        enqueue_many(stack, [{"prompt": "x"}, entry])
    assert rows(stack) == (0, 0)


def test_a_fallback_may_be_a_mapping_as_over_http(stack: WorkerServices) -> None:
    [job] = enqueue_many(stack, [{"prompt": "x", "fallbacks": [{"provider": "demo"}]}])
    request = stored(stack, job.id).request
    assert [fallback["provider"] for fallback in request["fallbacks"]] == ["demo"]


def test_a_long_list_is_stored_as_a_short_one_is(stack: WorkerServices, user: UUID) -> None:
    """From some length on, it comes by COPY, which reads other escapes, and fills no defaults."""
    odd: list[dict[str, Any]] = [
        {
            "prompt": 'tab\t line\n return\r back\\slash \\N {"x": 1e23} \u2028',
            "tags": ['"a\\', "b,}"],
        },
        {"prompt": "x", "options": {"delay_seconds": 6e23}, "user_id": user, "expires_in": 60.5},
        {"prompt": "keyed", "idempotency_key": "a\\b", "max_retries": 7},
        {"text": "A text.", "source": "tab\\", "tags": ["c"]},
    ]
    short = [{**one, "idempotency_key": None} for one in odd]
    enqueue: Any = (stack.jobs.enqueue_embedding, stack.jobs.enqueue_generation)
    one_by_one = [enqueue["text" not in one](**one) for one in short]
    many = enqueue_many(stack, [*odd, *[{"prompt": "more"}] * COPIED_FROM])
    assert [as_accepted(stack.jobs.get(job.id)) for job in many[:5]] == many[:5]
    for by_copy, single in zip(many, one_by_one, strict=False):
        copied, inserted = stored(stack, by_copy.id), stored(stack, single.id)
        for column in [one.name for one in Job.__table__.columns]:
            if column not in {"id", "created_at", "expires_at", "rung_at", "idempotency_key"}:
                name = {"rung_epoch": "published_epoch"}.get(column, column)
                assert getattr(copied, name) == getattr(inserted, name), name
        assert (copied.published_at is None) == (inserted.published_at is None)
        lives = [job.expires_at - job.created_at for job in (copied, inserted)]
        assert lives[0] == lives[1]


def test_a_key_that_comes_while_a_long_list_is_stored_is_the_job_that_is_there(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COPY can't leave a row out: the list is then stored in another way, none of it twice."""
    copy = NewJobRepository.copy

    def first_another(self: NewJobRepository, *given: Any) -> Any:
        stack.jobs.enqueue_generation("x", idempotency_key="k")
        return copy(self, *given)

    monkeypatch.setattr(NewJobRepository, "copy", first_another)
    entries = [{"prompt": "more"}] * COPIED_FROM
    jobs = enqueue_many(stack, [*entries, {"prompt": "x", "idempotency_key": "k"}, *entries])
    assert rows(stack) == (2 * COPIED_FROM + 1, 0)
    assert jobs[COPIED_FROM].id == stack.jobs.enqueue_generation("x", idempotency_key="k").id
    with pytest.raises(NotFound, match="user"):
        enqueue_many(stack, [{"prompt": "x", "user_id": uuid4()}] * COPIED_FROM)


def test_what_generations_share_is_checked_once_and_nothing_is_taken_for_another(
    stack: WorkerServices, user: UUID
) -> None:
    """Lists whose entries differ in one thing are what each entry is by itself."""
    says: list[dict[str, Any]] = [
        {},
        {"temperature": 1},
        {"temperature": 1.0},
        {"max_tokens": 1},
        {"stop": ("a",)},
        {"tags": ("a",)},
        {"user_id": user},
        {"options": {}},
        {"system": "s"},
        {"idempotency_key": "k"},
        {"idempotency_key": None},
        {"provider": "demo"},
        {"fallbacks": [{"provider": "demo"}]},
    ]
    prompts = ["plain", 'ünïcode \\ "quoted"', "😀 \n", "a" * 40]
    entries = [{"prompt": prompt, **said} for said in says for prompt in prompts[:1]]
    entries += [{"prompt": prompt, **said} for prompt in prompts for said in says[:9]]
    checks = stack.jobs._checks.of_call(None)
    for entry in entries:
        alone = stack.jobs._checks.of_call(None).generation(entry)
        made = checks.generation(entry)
        assert replace(made, id=alone.id) == alone
        assert json.loads(made.written) == made.body
    for wrong in (
        {"prompt": "x", "temperature": True},
        {"prompt": "x", "max_tokens": True},
        {"prompt": " "},
        {"prompt": "nul \0"},
        {"prompt": "half \ud800"},
        {"prompt": "x", "idempotency_key": ""},
        {"prompt": "x", "idempotency_key": "line\n"},
        {"prompt": "x" * stack.settings.max_text_bytes},
        {"prompt": 5},
        {"prompt": None},
    ):
        with pytest.raises(InvalidInput) as told:
            checks.generation(wrong)
        with pytest.raises(InvalidInput) as alone_told:
            stack.jobs._checks.of_call(None).generation(wrong)
        assert str(told.value) == str(alone_told.value)


def test_more_than_the_bound_is_refused_and_none_is_nothing(stack: WorkerServices) -> None:
    entry = {"prompt": "x"}
    with pytest.raises(InvalidInput, match="at most 10,000"):
        enqueue_many(stack, [entry] * (MAX_JOBS_AT_ONCE + 1))
    assert enqueue_many(stack, []) == []
    assert rows(stack) == (0, 0)
    assert len(enqueue_many(stack, [entry] * MAX_JOBS_AT_ONCE)) == MAX_JOBS_AT_ONCE


def test_known_keys_are_the_jobs_that_are_there(stack: WorkerServices, user: UUID) -> None:
    there = stack.jobs.enqueue_generation("x", idempotency_key="k")
    stack.jobs.cancel(there.id)
    entries: list[dict[str, Any]] = [
        {"prompt": "new"},
        {"prompt": "x", "idempotency_key": "k"},
        {"prompt": "x", "idempotency_key": "k", "user_id": user},
        {"prompt": "twice", "idempotency_key": "t"},
        {"prompt": "twice", "idempotency_key": "t"},
    ]
    jobs = enqueue_many(stack, entries)
    assert (jobs[1].id, jobs[1].state) == (there.id, JobState.CANCELLED)
    assert jobs[2].id != there.id
    assert jobs[3] == jobs[4]
    again = enqueue_many(stack, entries[1:])
    assert [job.id for job in again] == [job.id for job in jobs[1:]]
    assert rows(stack) == (4, 0)
    assert sent(stack)[1:] == [str(job.id) for job in (jobs[0], jobs[2], jobs[3])]


def test_of_two_texts_for_one_source_the_last_one_stays(stack: WorkerServices) -> None:
    entries = [{"text": text_, "source": "a"} for text_ in ("first", "second")]
    one, other = enqueue_many(stack, entries)
    ids = {stored(stack, job.id).request["document_id"] for job in (one, other)}
    with stack.ledger.transaction() as unit:
        [document] = unit.documents.get_many()
        assert ({str(document.id)}, document.text) == (ids, "second")


def test_in_the_callers_transaction_they_exist_from_its_commit(stack: WorkerServices) -> None:
    with Session(stack.ledger.engine) as session:
        jobs = enqueue_many(stack, [{"prompt": "a"}, {"text": "b", "source": "b"}], session)
        assert (rows(stack), sent(stack)) == ((0, 0), [])
        session.commit()
    assert (rows(stack), sent(stack)) == ((2, 1), [str(jobs[0].id)])
    with Session(stack.ledger.engine) as session:
        enqueue_many(stack, [{"prompt": "a"}, {"prompt": "b"}], session)
        session.rollback()
        session.commit()
    assert (rows(stack)[0], len(sent(stack))) == (2, 1)


def test_a_refused_list_leaves_the_callers_transaction_as_it_was(stack: WorkerServices) -> None:
    with Session(stack.ledger.engine) as session:
        before = stack.jobs.enqueue_generation("before", session=session)
        for fault in ("a key of another request", "an unknown user", "the key of an entry before"):
            stack.jobs.enqueue_generation("taken", idempotency_key="taken")
            first = {"text": "a", "source": "a"}, {"prompt": "f", "idempotency_key": "first"}
            with pytest.raises(BAD[fault][1]):
                enqueue_many(stack, [*first, BAD[fault][0]], session)
        session.commit()
    assert rows(stack) == (2, 0)
    assert sent(stack)[1:] == [str(before.id)]


def test_lists_of_the_same_keys_in_another_order_do_not_block_each_other(
    stack: WorkerServices,
) -> None:
    entries: list[dict[str, Any]] = [
        {"prompt": f"{number}", "idempotency_key": f"{number}"} for number in range(20)
    ] + [{"text": f"{number}", "source": f"{number}"} for number in range(20)]
    start = threading.Barrier(4, timeout=PATIENCE)

    def enqueue(number: int) -> set[UUID]:
        start.wait()
        ordered = entries if number % 2 else entries[::-1]
        return {job.id for job in enqueue_many(stack, ordered) if job.kind is JobKind.GENERATION}

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(enqueue, range(4)))
    assert found == [found[0]] * 4
    assert rows(stack) == (20 + 4 * 20, 20)
    assert len(sent(stack)) == 20


# One by one, at once


def test_a_crowded_pool_is_waited_for_once(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    @contextmanager
    def crowded() -> Iterator[Any]:
        tries.append("once")
        if tries:
            raise LedgerCrowded("All connections are in use.")
        yield

    monkeypatch.setattr(stack.ledger, "statement", crowded)
    with pytest.raises(LedgerUnavailable):
        stack.jobs.enqueue_generation("x")
    assert tries == ["once"]


def test_jobs_of_several_threads_share_statements_and_lose_nothing(
    stack: WorkerServices, user: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    many, began = 200, threading.Barrier(8, timeout=PATIENCE)
    statements: list[int] = []
    of_ledger = stack.ledger.statement

    @contextmanager
    def counted() -> Iterator[Any]:
        with of_ledger() as statement:
            statements.append(1)
            yield statement

    monkeypatch.setattr(stack.ledger, "statement", counted)

    def enqueue(number: int) -> JobView | None:
        if number < 8:
            began.wait()
        if number % 10 == 0:
            with pytest.raises(NotFound):
                stack.jobs.enqueue_generation(f"{number}", user_id=uuid4())
            return None
        return stack.jobs.enqueue_generation(f"{number}", user_id=user)

    with ThreadPoolExecutor(8) as pool:
        jobs = [job for job in pool.map(enqueue, range(many)) if job]
    assert len(statements) < many
    assert len({job.id for job in jobs}) == rows(stack)[0] == many * 9 // 10
    assert sorted(sent(stack)) == sorted(str(job.id) for job in jobs)
    for job in jobs[:20]:
        assert as_accepted(stack.jobs.get(job.id)) == job


class Broken:
    """A ledger whose connection breaks at the first commit, before it or after it."""

    def __init__(self, ledger: Ledger, *, is_committed: bool) -> None:
        self._real: dict[str, Any] = {
            "statement": ledger.statement,
            "transaction": ledger.transaction,
        }
        self._is_committed = is_committed
        self.is_whole = True

    @contextmanager
    def open(self, what: str) -> Iterator[Any]:
        if self.is_whole:
            with self._real[what]() as unit:
                yield unit
            return
        self.is_whole = True
        if not self._is_committed:
            raise LedgerUnavailable("The connection broke before the commit.")
        with self._real[what]() as unit:
            # What waits for the commit does not happen.
            vars(unit)["after_commit"] = lambda *_: None
            yield unit
        raise LedgerUnavailable("The connection broke after the commit.")


@pytest.fixture
def broken(stack: WorkerServices, monkeypatch: pytest.MonkeyPatch, is_committed: bool) -> Broken:
    broken = Broken(stack.ledger, is_committed=is_committed)
    monkeypatch.setattr(stack.ledger, "statement", lambda: broken.open("statement"))
    monkeypatch.setattr(stack.ledger, "transaction", lambda: broken.open("transaction"))
    return broken


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_connection_that_breaks_at_the_commit_doubles_no_job(
    stack: WorkerServices, broken: Broken
) -> None:
    many: list[dict[str, Any]] = [
        {"prompt": "a"},
        {"text": "b", "source": "b"},
        {"prompt": "c", "idempotency_key": "c"},
        {"prompt": "c", "idempotency_key": "c"},
    ]
    ways: dict[str, tuple[Callable[[], list[JobView]], int]] = {
        "one": (lambda: [stack.jobs.enqueue_generation("x")], 1),
        "of a key": (lambda: [stack.jobs.enqueue_generation("y", idempotency_key="k")], 1),
        "a document": (lambda: [stack.jobs.enqueue_embedding("z", source="z")], 1),
        "many": (lambda: enqueue_many(stack, many), 3),
    }
    known: set[UUID] = set()
    for way, (enqueue, count) in ways.items():
        broken.is_whole = False
        jobs = enqueue()
        assert broken.is_whole, way
        known |= {job.id for job in jobs}
        assert [as_accepted(stack.jobs.get(job.id)) for job in jobs] == jobs, way
        assert len({job.id for job in jobs}) == count, way
        assert rows(stack)[0] == len(known), way
        published = {*sent(stack), *sent(stack, "embeddings")}
        assert published == {str(job_id) for job_id in known}, way


@pytest.mark.parametrize("is_committed", [True])
def test_a_key_is_the_same_job_after_a_commit_of_which_nobody_heard(
    stack: WorkerServices, broken: Broken
) -> None:
    broken.is_whole = False
    first = stack.jobs.enqueue_generation("y", idempotency_key="k")
    assert stack.jobs.enqueue_generation("y", idempotency_key="k").id == first.id
    assert rows(stack) == (1, 0)


END_THE_SESSION = """
CREATE FUNCTION end_it() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END$$;
CREATE TRIGGER ends BEFORE INSERT ON jobs FOR EACH ROW
WHEN (NEW.request->>'prompt' = 'end it') EXECUTE FUNCTION end_it()
"""


def test_a_connection_that_postgresql_closes_in_the_statement_doubles_no_job(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real thing: the server ends the session while the statement runs."""
    stack.jobs.enqueue_generation("connects")
    with stack.ledger.transaction() as unit:
        unit.session.execute(text(END_THE_SESSION))
    with pytest.raises(LedgerUnavailable):
        stack.jobs.enqueue_generation("end it")
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("DROP TRIGGER ends ON jobs"))
    job = stack.jobs.enqueue_generation("end it")
    assert rows(stack) == (2, 0)
    assert sent(stack)[1:] == [str(job.id)]


# Over HTTP


def test_a_list_over_http_is_accepted_whole(client: TestClient, stack: WorkerServices) -> None:
    jobs = [
        {"prompt": "Say hello.", "idempotency_key": "k", "temperature": 0.5},
        {"text": "A text.", "source": "handbook"},
        {"text": "A text without a source."},
        {"messages": [{"role": "user", "content": "Hello."}]},
    ]
    for _ in range(2):
        answer = client.post(BULK, json={"jobs": jobs[:1]})
    assert answer.status_code == 202
    assert (answer.headers["Location"], answer.headers["Retry-After"]) == ("/api/v1/jobs", "1")
    accepted = client.post(BULK, json={"jobs": jobs})
    assert accepted.status_code == 202, accepted.text
    found = accepted.json()["jobs"]
    assert [job["kind"] for job in found] == ["generation", "embedding", "embedding", "generation"]
    assert found[0] == answer.json()["jobs"][0]
    shown = client.get(f"/api/v1/jobs/{found[2]['id']}").json()
    assert shown == {**found[2], "waits": shown["waits"]}
    assert rows(stack) == (4, 2)
    users = {stored(stack, UUID(job["id"])).user_id for job in found}
    assert len(users) == 1
    assert None not in users


def test_ten_thousand_ordinary_jobs_fit(client: TestClient, stack: WorkerServices) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi. " * 50},
    ]
    entry = {"messages": messages, "temperature": 0.2, "max_tokens": 100, "tags": ["a", "b"]}
    jobs = [{**entry, "idempotency_key": f"order-{n}"} for n in range(MAX_JOBS_AT_ONCE)]
    answer = client.post(BULK, json={"jobs": jobs})
    assert answer.status_code == 202, answer.text
    assert len(answer.json()["jobs"]) == MAX_JOBS_AT_ONCE
    # Interactive jobs go before a list, unless it says otherwise.
    assert sent(stack) == []
    client.post(BULK, json={"jobs": [{"prompt": "x", "bulk": False}]})
    assert len(sent(stack)) == 1


def test_a_list_that_is_sent_again_with_its_key_is_there_once(
    client: TestClient, stack: WorkerServices
) -> None:
    def send(jobs: list[dict[str, Any]]) -> Any:
        return client.post(BULK, json={"jobs": jobs}, headers={"Idempotency-Key": "k"})

    jobs = [{"prompt": f"{n}"} for n in range(3)] + [{"prompt": "own", "idempotency_key": "own"}]
    first, again = send(jobs), send(jobs)
    assert (first.status_code, again.status_code) == (202, 202)
    ids = [job["id"] for job in first.json()["jobs"]]
    assert [job["id"] for job in again.json()["jobs"]] == ids
    assert rows(stack)[0] == 4
    # Neither a part of it, nor more than it, is the same request.
    for other in (jobs[:2], [*jobs, {"prompt": "more"}]):
        problem(send(other), 409, "IDEMPOTENCY_CONFLICT")
    assert rows(stack)[0] == 4


def test_a_list_over_http_is_refused_whole_and_the_entry_is_named(
    client: TestClient, stack: WorkerServices
) -> None:
    good = {"prompt": "x", "idempotency_key": "k"}
    told = problem(client.post(BULK, json={"jobs": [good, {"prompt": " "}]}), 422, "INVALID_INPUT")
    assert "jobs[1]" in told["detail"]
    assert told["field"] == "/jobs/1"
    taken = {"prompt": "y", "idempotency_key": "k"}
    told = problem(client.post(BULK, json={"jobs": [good, taken]}), 409, "IDEMPOTENCY_CONFLICT")
    assert "jobs[1]" in told["detail"]
    bodies: list[tuple[Any, list[Any]]] = [
        ({"jobs": [good, 5]}, ["jobs", 1]),
        ({"jobs": [good, {}]}, ["jobs[1]"]),
        ({"jobs": [good, None, "text"]}, ["jobs", 1]),
        ({"jobs": [good, {"text": "x", "prompt": "y"}]}, ["jobs", 1]),
        ({"jobs": [good, {"prompt": "x", "user_id": str(uuid4())}]}, ["jobs", 1]),
        ({"jobs": [good] * (MAX_JOBS_AT_ONCE + 1)}, ["jobs"]),
        ({"jobs": {}}, ["jobs"]),
        ({}, ["jobs"]),
    ]
    for body, place in bodies:
        told = problem(client.post(BULK, json=body), 422, "INVALID_INPUT")
        assert all(str(part) in json.dumps(told) for part in place), (body, told)
    assert rows(stack) == (0, 0)
