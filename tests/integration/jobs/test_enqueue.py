"""Enqueueing: what is refused leaves nothing, what is accepted is there once and is published."""

import json
import random
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from pydantic import JsonValue
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.orm import Session

from promptstack.config.control_characters import escaped
from promptstack.config.errors import PromptStackError
from promptstack.config.names import Queue
from promptstack.config.setting_types import TierWeights
from promptstack.config.settings import Settings
from promptstack.embedded.servers import ServerUrls
from promptstack.repositories.models import Job, JobKind, JobState
from promptstack.repositories.session import Ledger
from promptstack.services.circuit_breaker import CircuitBreaker
from promptstack.services.errors import (
    IdempotencyConflict,
    InvalidInput,
    UnknownModel,
    UnknownProvider,
)
from promptstack.services.jobs.new_job import JobDefaults
from promptstack.services.jobs.publishing import BrokerUnavailable, JobMessage, Publisher
from promptstack.services.jobs.service import JobService
from promptstack.services.jobs.views import JobView
from promptstack.services.jobs.waits import JobWaits
from promptstack.services.llm.openai.service import RESERVED_OPTIONS
from promptstack.services.llm.requests import Message
from promptstack.services.maintenance.outbox import Outbox
from promptstack.services.sharing.bulk_jobs import BulkJobs
from promptstack.tasks.redis_publisher import RedisPublisher
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import as_accepted
from tests.processes import PATIENCE
from tests.reconcilers import outbox_of

NO_REDIS = "unix:///nowhere/at/all.sock"
DEFAULTS = JobDefaults("demo", "local", max_retries=3, expires_seconds=600, max_text_bytes=2_000)
QUEUES = ("generation", "embeddings")


class RecordingPublisher:
    """A publisher that writes down what it is told, and may be out of order."""

    def __init__(self, on_publish: Callable[[JobMessage], None] = lambda message: None) -> None:
        self.published: list[UUID] = []
        self.works = True
        self.on_publish = on_publish

    def epoch(self, max_age: float = 0.0) -> str:
        self._check()
        return "epoch"

    def publish(self, messages: Sequence[JobMessage]) -> str:
        self._check()
        for message in messages:
            self.on_publish(message)
            self.published.append(message.job_id)
        return "epoch"

    def publish_all(self, messages: Sequence[JobMessage]) -> None:
        self.publish(messages)

    def uptime(self) -> float | None:
        return None

    def waiting(self, queue: Queue) -> int:
        self._check()
        return len(self.published)

    def _check(self) -> None:
        if not self.works:
            raise BrokerUnavailable("The broker is away.")


@pytest.fixture
def ledger(stack: WorkerServices) -> Ledger:
    return stack.ledger


@pytest.fixture
def publisher() -> RecordingPublisher:
    return RecordingPublisher()


@pytest.fixture
def jobs(stack: WorkerServices, publisher: RecordingPublisher) -> JobService:
    """The enqueue API with a publisher that only takes notes."""
    return service(stack, publisher)


@pytest.fixture
def cut_off(settings: Settings) -> Iterator[WorkerServices]:
    """The same ledger, seen by a process that can't reach Redis."""
    with WorkerServices.open(settings.model_copy(update={"redis_url": NO_REDIS})) as opened:
        yield opened


def service(stack: WorkerServices, publisher: Publisher) -> JobService:
    bulk = BulkJobs(
        stack.ledger, publisher, jobs_a_worker=9, worker_lost_seconds=9.0, weights=TierWeights()
    )
    return JobService(
        stack.ledger,
        publisher,
        stack.progress,
        stack.factory,
        DEFAULTS,
        waits=JobWaits(stack.factory, 60),
        texts=stack.text_streams,
        after_bulk=bulk.after_enqueue,
    )


def rows(ledger: Ledger) -> tuple[int, int]:
    """How many jobs and documents there are."""
    with ledger.transaction() as unit:
        counts = unit.session.execute(
            text("SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM documents)")
        ).one()
    return counts[0], counts[1]


def row(ledger: Ledger, job_id: UUID) -> Job:
    with ledger.transaction() as unit:
        found = unit.jobs.get(job_id)
        assert found is not None
        _ = found.request  # not loaded by itself
        return found


def add_user(ledger: Ledger, email: str = "ada@example.org", **values: Any) -> UUID:
    with ledger.transaction() as unit:
        return unit.users.create(email=email, **values).id


def messages(stack: WorkerServices) -> dict[str, list[str]]:
    """The job ids in the messages that wait, by queue, oldest first."""
    waiting: dict[str, list[str]] = {}
    for queue in QUEUES:
        raw: Any = stack.redis.lrange(queue, 0, -1)
        bodies = [json.loads(b64decode(json.loads(message)["body"])) for message in raw]
        waiting[queue] = [body[0][0] for body in reversed(bodies)]
        # Besides the job's id, only when it was sent.
        assert all(datetime.fromisoformat(sent_at) for ((_, sent_at), *_) in bodies)
    return waiting


def age(ledger: Ledger, seconds: int) -> None:
    """Let all jobs have been enqueued that long ago."""
    with ledger.transaction() as unit:
        unit.session.execute(
            text("UPDATE jobs SET created_at = created_at - make_interval(secs => :seconds)"),
            {"seconds": seconds},
        )


# What is refused

BAD_JOBS: dict[str, dict[str, Any]] = {
    "an unknown provider": {"provider": "opnai"},
    "a provider with a line break": {"provider": "de\nmo"},
    "a provider with half a pair": {"provider": "de\ud800mo"},
    "an unknown model": {"model": "demo-2"},
    "an empty model": {"provider": "openai", "model": " "},
    "a model with a NUL": {"provider": "openai", "model": "gpt\x00"},
    "a model with half a pair": {"provider": "openai", "model": "gpt\udfff"},
    "a model without end": {"provider": "openai", "model": "m" * 3_000},
    "an empty key": {"idempotency_key": ""},
    "a long key": {"idempotency_key": "k" * 201},
    "a key with a NUL": {"idempotency_key": "k\x00"},
    "a key with half a pair": {"idempotency_key": "\udc00"},
    "retries below none": {"max_retries": -1},
    "too many retries": {"max_retries": 101},
    "no time": {"expires_in": 0.0},
    "less than no time": {"expires_in": -1.0},
    "too much time": {"expires_in": 367 * 86_400.0},
    "infinite time": {"expires_in": float("inf")},
    "a time that is no number": {"expires_in": float("nan")},
}
OPENAI: dict[str, Any] = {"provider": "openai"}
BAD_GENERATIONS: dict[str, dict[str, Any]] = {
    **BAD_JOBS,
    "no prompt": {"prompt": None},
    "an empty prompt": {"prompt": ""},
    "a blank prompt": {"prompt": " \n\t"},
    "a prompt with a NUL": {"prompt": "a\x00b"},
    "a prompt with half a pair": {"prompt": "a\ud83d"},
    "prompt and messages": {"messages": [Message(role="user", content="x")]},
    "a system prompt with a NUL": {"system": "\x00"},
    "too large a prompt": {"prompt": "x" * 2_001},
    "too large in bytes": {"prompt": "日" * 700},
    "too large a system prompt": {"system": "x" * 2_001},
    "too large an option": {**OPENAI, "options": {"a": "x" * 2_001}},
    "a model without generations": {"provider": "local"},
    "too cold": {"temperature": -0.1},
    "too hot": {"temperature": 2.1},
    "no temperature": {"temperature": float("nan")},
    "no tokens": {"max_tokens": 0},
    "a stop with a NUL": {"stop": ["a", "\x00"]},
    "an unknown option": {"options": {"delay": 1}},
    "a NaN option": {**OPENAI, "options": {"a": [{"b": float("nan")}]}},
    "an infinite option": {**OPENAI, "options": {"a": float("-inf")}},
    "a NUL in an option": {**OPENAI, "options": {"a": {"b": "\x00"}}},
    "a NUL in an option's name": {**OPENAI, "options": {"a": {"\x00": 1}}},
    "half a pair in an option": {**OPENAI, "options": {"a": ["\ud800"]}},
    "an option that is no JSON": {**OPENAI, "options": {"a": b"bytes"}},
    "a number without end": {**OPENAI, "options": {"a": 10**5_000}},
    "a seed without end": {"seed": 10**5_000},
}
BAD_EMBEDDINGS: dict[str, dict[str, Any]] = {
    **BAD_JOBS,
    "an empty document": {"text": ""},
    "a blank document": {"text": " \n\t\u2003"},
    "a document with a NUL": {"text": "a\x00"},
    "a document with half a pair": {"text": "\udfff"},
    "too large a document": {"text": "x" * 2_001},
    "too large a document in bytes": {"text": "🙂" * 501},
    "an empty source": {"source": ""},
    "a source with a NUL": {"source": "a\x00"},
    "a source with half a pair": {"source": "\ud800"},
    "a long source": {"source": "s" * 2_001},
    "a model without embeddings": {"provider": "demo"},
}


def refused(ask: Callable[[], object]) -> str:
    with pytest.raises(InvalidInput) as caught:
        ask()
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
    return message


def deeper(levels: int) -> JsonValue:
    nested: JsonValue = "marmalade"
    for _ in range(levels):
        nested = [nested]
    return nested


def test_bad_generations_are_refused_and_leave_nothing(
    jobs: JobService, ledger: Ledger, publisher: RecordingPublisher, subtests: pytest.Subtests
) -> None:
    for fault, values in BAD_GENERATIONS.items():
        request: dict[str, Any] = {"prompt": "Say hello.", **values}
        with subtests.test(fault):
            refused(partial(jobs.enqueue_generation, **request))
            assert rows(ledger) == (0, 0)
    assert publisher.published == []


def test_bad_embeddings_are_refused_and_leave_nothing(
    jobs: JobService, ledger: Ledger, publisher: RecordingPublisher, subtests: pytest.Subtests
) -> None:
    for fault, values in BAD_EMBEDDINGS.items():
        request: dict[str, Any] = {"text": "A text.", "source": "a.txt", **values}
        with subtests.test(fault):
            refused(partial(jobs.enqueue_embedding, **request))
            assert rows(ledger) == (0, 0)
    assert publisher.published == []


def test_a_refusal_says_what_is_wrong_by_its_class(jobs: JobService) -> None:
    with pytest.raises(UnknownProvider, match="anthropic, demo, gemini, local, openai"):
        jobs.enqueue_generation("x", provider="opnai")
    with pytest.raises(UnknownModel, match="demo-1"):
        jobs.enqueue_generation("x", model="demo-2")
    with pytest.raises(UnknownModel, match="offers no embedding"):
        jobs.enqueue_embedding("x", source="a", provider="demo")


def test_a_refusal_quotes_no_content(jobs: JobService) -> None:
    secret = "marmalade"
    requests: list[dict[str, Any]] = [
        {"prompt": f"{secret}\x00"},
        {"prompt": f"{secret} " * 300},
        {"prompt": secret, "messages": [Message(role="user", content=secret)]},
        {"prompt": "x", "system": f"{secret}\ud800"},
        {"prompt": "x", "stop": [f"{secret}\x00"]},
        {**OPENAI, "prompt": "x", "options": {"a": f"{secret}\x00"}},
        {**OPENAI, "prompt": "x", "options": {"a": secret.encode()}},
        {"prompt": "x", "idempotency_key": f"{secret}\x00"},
    ]
    for request in requests:
        assert secret not in refused(partial(jobs.enqueue_generation, **request))
    for source, document in {"a": f"{secret}\x00", f"{secret}\x00": "x", "b": secret * 300}.items():
        message = refused(partial(jobs.enqueue_embedding, document, source=source))
        assert secret not in message


def test_options_nested_without_end_are_refused_in_one_short_sentence(
    jobs: JobService, ledger: Ledger
) -> None:
    for levels in (300, 5_000):
        options = {"a": deeper(levels)}
        message = refused(partial(jobs.enqueue_generation, "x", options=options, **OPENAI))
        assert "options" in message
    assert rows(ledger) == (0, 0)


def test_an_unknown_user_is_an_error_of_ours_and_leaves_nothing(
    jobs: JobService, ledger: Ledger
) -> None:
    with pytest.raises(PromptStackError):
        jobs.enqueue_generation("x", user_id=uuid4())
    with pytest.raises(PromptStackError):
        jobs.enqueue_embedding("x", source="a", user_id=uuid4())
    assert rows(ledger) == (0, 0)


def test_a_source_of_any_letters_is_accepted_up_to_its_length(
    jobs: JobService, ledger: Ledger
) -> None:
    """Letters outside ASCII take up to four bytes each in PostgreSQL's index."""
    for first in (0x4E00, 0x1F300):
        chosen = random.Random(first)
        source = "".join(chr(first + chosen.randrange(700)) for _ in range(500))
        job = jobs.enqueue_embedding("x", source=source)
        document_id = UUID(row(ledger, job.id).request["document_id"])
        with ledger.transaction() as unit:
            document = unit.documents.get(document_id)
            assert document is not None
            assert document.source == source


# What is accepted

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
some_text = st.text(characters, min_size=1, max_size=40).filter(str.strip)
some_json = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**30), 10**30),
        st.floats(-1e6, 1e6).filter(lambda number: number != 0),
        st.text(characters, max_size=20),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(characters), inner, max_size=3)
    ),
    max_leaves=6,
)

option_names = st.text(characters).filter(lambda name: name not in RESERVED_OPTIONS)


@effort(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_text, some_text, st.dictionaries(option_names, some_json, max_size=3))
def test_what_is_accepted_is_stored_as_it_came(
    jobs: JobService, ledger: Ledger, prompt: str, other: str, options: dict[str, JsonValue]
) -> None:
    job = jobs.enqueue_generation(
        prompt, system=other, stop=[other], options=options, idempotency_key=None, **OPENAI
    )
    stored = row(ledger, job.id).request
    assert (stored["prompt"], stored["system"], stored["stop"]) == (prompt, other, [other])
    assert stored.get("options", {}) == options
    source = f"a {escaped(other)}"
    embedding = jobs.enqueue_embedding(prompt, source=source)
    with ledger.transaction() as unit:
        document = unit.documents.get(UUID(row(ledger, embedding.id).request["document_id"]))
        assert document is not None
        assert (document.text, document.source) == (prompt, source)


def test_a_job_gets_what_it_says_and_defaults_for_the_rest(
    jobs: JobService, ledger: Ledger
) -> None:
    plain = jobs.enqueue_generation("x")
    assert (plain.state, plain.kind) == (JobState.QUEUED, JobKind.GENERATION)
    assert (plain.provider, plain.model, plain.max_retries) == ("demo", "demo-1", 3)
    assert (plain.attempt, plain.failures, plain.current, plain.total) == (0, 0, 0, 1)
    assert (plain.expires_at - plain.created_at).total_seconds() == pytest.approx(600, abs=30)
    assert row(ledger, plain.id).request == {"provider": "demo", "model": "demo-1", "prompt": "x"}
    special = jobs.enqueue_embedding("x", source="a", max_retries=0, expires_in=60.0)
    assert (special.kind, special.max_retries) == (JobKind.EMBEDDING, 0)
    assert (special.expires_at - special.created_at).total_seconds() == pytest.approx(60, abs=30)
    assert as_accepted(jobs.get(special.id)) == special


def test_the_same_source_again_replaces_its_text(jobs: JobService, ledger: Ledger) -> None:
    user = add_user(ledger)
    first = jobs.enqueue_embedding("old", source="a")
    second = jobs.enqueue_embedding("new", source="a")
    other = jobs.enqueue_embedding("mine", source="a", user_id=user)
    ids = [row(ledger, job.id).request["document_id"] for job in (first, second, other)]
    assert ids[0] == ids[1] != ids[2]
    assert rows(ledger) == (3, 2)
    with ledger.transaction() as unit:
        assert [document.text for document in unit.documents.get_many()] == ["new", "mine"]


def test_a_user_gets_the_provider_they_prefer(jobs: JobService, ledger: Ledger) -> None:
    loyal = add_user(ledger, preferred_provider="openai")
    plain = add_user(ledger, "b@example.org")
    lost = add_user(ledger, "c@example.org", preferred_provider="gone")
    assert jobs.enqueue_generation("x", user_id=loyal).provider == "openai"
    assert jobs.enqueue_generation("x", user_id=loyal, provider="demo").provider == "demo"
    assert jobs.enqueue_generation("x", user_id=plain).provider == "demo"
    # It may be one that embeds nothing.
    assert jobs.enqueue_embedding("x", source="a", user_id=loyal).provider == "local"
    with pytest.raises(UnknownProvider):
        jobs.enqueue_generation("x", user_id=lost)


# Once

Enqueue = Callable[..., JobView]


def test_the_same_key_with_the_same_request_is_the_same_job(
    jobs: JobService, ledger: Ledger, publisher: RecordingPublisher
) -> None:
    one = jobs.enqueue_generation("x", idempotency_key="k", temperature=0.5)
    again = jobs.enqueue_generation("x", idempotency_key="k", temperature=0.5, max_retries=9)
    assert again.id == one.id
    assert again.max_retries == one.max_retries
    document = jobs.enqueue_embedding("x", source="a", idempotency_key="d")
    assert jobs.enqueue_embedding("x", source="a", idempotency_key="d").id == document.id
    assert rows(ledger) == (2, 1)
    assert publisher.published == [one.id, document.id]


def test_the_same_key_answers_with_a_job_that_has_ended(jobs: JobService) -> None:
    one = jobs.enqueue_generation("x", idempotency_key="k")
    jobs.cancel(one.id)
    again = jobs.enqueue_generation("x", idempotency_key="k")
    assert (again.id, again.state) == (one.id, JobState.CANCELLED)


def test_the_same_key_with_another_request_is_a_conflict(jobs: JobService, ledger: Ledger) -> None:
    jobs.enqueue_generation("x", idempotency_key="k")
    jobs.enqueue_embedding("x", source="a", idempotency_key="d")
    others: list[Callable[[], object]] = [
        lambda: jobs.enqueue_generation("y", idempotency_key="k"),
        lambda: jobs.enqueue_generation("x", system="s", idempotency_key="k"),
        lambda: jobs.enqueue_generation("x", provider="openai", idempotency_key="k"),
        lambda: jobs.enqueue_generation("x", idempotency_key="d"),
        lambda: jobs.enqueue_embedding("x", source="a", idempotency_key="k"),
        lambda: jobs.enqueue_embedding("x", source="b", idempotency_key="d"),
        lambda: jobs.enqueue_embedding("y", source="a", idempotency_key="d"),
    ]
    for other in others:
        with pytest.raises(IdempotencyConflict, match="another request"):
            other()
    assert rows(ledger) == (2, 1)
    with ledger.transaction() as unit:
        assert [document.text for document in unit.documents.get_many()] == ["x"]


def test_keys_belong_to_their_user(jobs: JobService, ledger: Ledger) -> None:
    users = [None, add_user(ledger), add_user(ledger, "b@example.org")]
    ids = {
        jobs.enqueue_generation(f"{user}", idempotency_key="k", user_id=user).id for user in users
    }
    assert len(ids) == 3
    assert {
        jobs.enqueue_generation(f"{u}", idempotency_key="k", user_id=u).id for u in users
    } == ids


@pytest.mark.parametrize("kind", ["generation", "embedding"])
def test_racing_with_one_key_makes_one_job_and_one_message(
    stack: WorkerServices,
    jobs: JobService,
    ledger: Ledger,
    publisher: RecordingPublisher,
    kind: str,
) -> None:
    threads = 6
    for round_ in range(5):
        key, start = f"k{round_}", threading.Barrier(threads, timeout=PATIENCE)

        def enqueue(_: int, key: str = key, start: threading.Barrier = start) -> UUID:
            start.wait()
            if kind == "generation":
                return jobs.enqueue_generation("x", idempotency_key=key).id
            return jobs.enqueue_embedding("x", source="a", idempotency_key=key).id

        with ThreadPoolExecutor(threads) as pool:
            assert len(set(pool.map(enqueue, range(threads)))) == 1
    assert rows(ledger)[0] == 5
    assert len(publisher.published) == len(set(publisher.published)) == 5


def test_racing_with_one_key_for_two_requests_accepts_one(jobs: JobService, ledger: Ledger) -> None:
    start = threading.Barrier(2, timeout=PATIENCE)

    def enqueue(prompt: str) -> UUID | None:
        start.wait()
        try:
            return jobs.enqueue_generation(prompt, idempotency_key="k").id
        except IdempotencyConflict:
            return None

    with ThreadPoolExecutor(2) as pool:
        ids = list(pool.map(enqueue, ("x", "y")))
    assert ids.count(None) == 1
    assert rows(ledger) == (1, 0)


# Within the caller's own transaction


def test_a_job_in_the_callers_transaction_exists_and_is_published_from_its_commit(
    jobs: JobService, ledger: Ledger, publisher: RecordingPublisher
) -> None:
    with Session(ledger.engine) as session:
        generation = jobs.enqueue_generation("x", session=session)
        embedding = jobs.enqueue_embedding("x", source="a", session=session)
        assert (rows(ledger), publisher.published) == ((0, 0), [])
        session.commit()
        assert (rows(ledger), publisher.published) == ((2, 1), [generation.id, embedding.id])
        session.rollback()
        session.commit()
    assert publisher.published == [generation.id, embedding.id]
    assert row(ledger, generation.id).published_at is not None


@pytest.mark.parametrize("end", ["rollback", "close"])
def test_a_callers_transaction_that_is_not_committed_leaves_nothing(
    jobs: JobService, ledger: Ledger, publisher: RecordingPublisher, end: str
) -> None:
    session = Session(ledger.engine)
    jobs.enqueue_generation("x", session=session, idempotency_key="k")
    jobs.enqueue_embedding("x", source="a", session=session)
    getattr(session, end)()
    session.commit()
    session.close()
    assert (rows(ledger), publisher.published) == ((0, 0), [])
    assert jobs.enqueue_generation("y", idempotency_key="k").state is JobState.QUEUED


def test_a_savepoint_takes_its_jobs_with_it(
    jobs: JobService, ledger: Ledger, publisher: RecordingPublisher
) -> None:
    with Session(ledger.engine) as session:
        before = jobs.enqueue_generation("x", session=session)
        savepoint = session.begin_nested()
        jobs.enqueue_generation("y", session=session)
        savepoint.rollback()
        after = jobs.enqueue_generation("z", session=session)
        session.commit()
    assert rows(ledger) == (2, 0)
    assert publisher.published == [before.id, after.id]


def test_a_refusal_leaves_the_callers_transaction_as_it_was(
    jobs: JobService, ledger: Ledger, publisher: RecordingPublisher
) -> None:
    jobs.enqueue_generation("x", idempotency_key="k")
    with Session(ledger.engine) as session:
        ledger.join(session).users.create(email="a@example.org")
        job = jobs.enqueue_generation("y", session=session)
        with pytest.raises(InvalidInput):
            jobs.enqueue_generation("", session=session)
        with pytest.raises(InvalidInput):
            jobs.enqueue_embedding("", source="a", session=session)
        with pytest.raises(IdempotencyConflict):
            jobs.enqueue_generation("z", idempotency_key="k", session=session)
        session.commit()
    assert rows(ledger) == (2, 0)
    assert publisher.published[1:] == [job.id]
    with ledger.transaction() as unit:
        assert unit.users.get_by_email("a@example.org") is not None


def test_a_key_is_seen_within_the_callers_transaction(
    jobs: JobService, ledger: Ledger, publisher: RecordingPublisher
) -> None:
    with Session(ledger.engine) as session:
        one = jobs.enqueue_generation("x", idempotency_key="k", session=session)
        assert jobs.enqueue_generation("x", idempotency_key="k", session=session).id == one.id
        session.commit()
    assert publisher.published == [one.id]


def test_a_race_lost_within_the_callers_transaction_loses_nothing_else(
    jobs: JobService, ledger: Ledger, publisher: RecordingPublisher
) -> None:
    """The other's job is committed after we looked for its key and before we store ours."""
    with Session(ledger.engine) as session, ThreadPoolExecutor(1) as other:
        first = jobs.enqueue_generation("first", session=session)
        with ledger.transaction() as unit:
            theirs = jobs.enqueue_generation("x", idempotency_key="k", session=unit.session)
            mine = other.submit(jobs.enqueue_generation, "x", idempotency_key="k", session=session)
            waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            while not unit.session.scalar(waiting):
                assert not mine.done()
        assert mine.result(30).id == theirs.id
        session.commit()
    assert rows(ledger) == (2, 0)
    assert publisher.published == [theirs.id, first.id]


# Publishing


def test_a_message_names_the_job_and_lies_in_the_queue_of_its_kind(stack: WorkerServices) -> None:
    generations = [stack.jobs.enqueue_generation(f"{number}") for number in range(3)]
    embedding = stack.jobs.enqueue_embedding("x", source="a")
    assert messages(stack) == {
        "generation": [str(job.id) for job in generations],
        "embeddings": [str(embedding.id)],
    }
    assert stack.publisher.waiting(Queue.GENERATION) == 3
    assert stack.publisher.waiting(Queue.EMBEDDINGS) == 1


def test_a_job_accepted_without_a_broker_is_published_when_it_is_back(
    stack: WorkerServices, cut_off: WorkerServices, ledger: Ledger
) -> None:
    jobs = [
        cut_off.jobs.enqueue_generation("x"),
        cut_off.jobs.enqueue_embedding("x", source="a"),
    ]
    assert [row(ledger, job.id).published_at for job in jobs] == [None, None]
    assert cut_off.reconciler.run_once()["messages"] == 0
    # The enqueuer is about to publish a fresh job itself.
    assert stack.reconciler.run_once()["messages"] == 0
    age(ledger, 6)
    assert stack.reconciler.run_once()["messages"] == 2
    assert stack.reconciler.run_once()["messages"] == 0
    expected = {queue: [str(job.id)] for queue, job in zip(QUEUES, jobs, strict=True)}
    assert messages(stack) == expected
    assert all(row(ledger, job.id).published_epoch == stack.publisher.epoch() for job in jobs)


def test_a_broker_that_was_away_is_left_alone_for_a_moment(cut_off: WorkerServices) -> None:
    now = [100.0]
    circuit = CircuitBreaker(clock=lambda: now[0])
    publisher = RedisPublisher(cut_off.redis, circuit=circuit)
    message = JobMessage(uuid4(), JobKind.GENERATION, Queue.GENERATION, "demo", "demo-1")
    for moment, said in ((100.0, "does not answer"), (101.9, "a moment ago"), (102.1, "does not")):
        now[0] = moment
        with pytest.raises(BrokerUnavailable, match=said):
            publisher.epoch()
        with pytest.raises(BrokerUnavailable, match="a moment ago"):
            publisher.publish([message])


def test_a_broker_that_goes_away_before_publishing_is_told_as_such(
    cut_off: WorkerServices,
) -> None:
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        cut_off.publisher.publish(
            [JobMessage(uuid4(), JobKind.GENERATION, Queue.GENERATION, "demo", "demo-1")]
        )


def test_accepted_is_accepted_also_when_the_message_cannot_be_noted(
    stack: WorkerServices, ledger: Ledger, servers: ServerUrls
) -> None:
    """The caller would else send the job again, and pay twice."""
    name = make_url(stack.database_url).database
    admin = create_engine(servers.database_url, isolation_level="AUTOCOMMIT")

    def close_the_database(_: JobMessage) -> None:
        with admin.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
            kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
            connection.execute(text(kill), {"name": name})

    jobs = service(stack, RecordingPublisher(close_the_database))
    try:
        # In a caller's transaction, as a job of its own is marked before it is published.
        with ledger.transaction() as unit:
            job = jobs.enqueue_generation("x", session=unit.session)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
        admin.dispose()
    assert row(ledger, job.id).published_at is None


def test_a_job_is_marked_as_published_when_it_is_committed(
    stack: WorkerServices, ledger: Ledger
) -> None:
    marked: list[str | None] = []
    publisher = RecordingPublisher(
        lambda message: marked.append(row(ledger, message.job_id).published_epoch)
    )
    service(stack, publisher).enqueue_generation("x")
    assert marked == ["epoch"]


def test_a_job_whose_publishing_fails_is_not_marked_any_more(
    stack: WorkerServices, ledger: Ledger
) -> None:
    def fail(_: JobMessage) -> None:
        raise BrokerUnavailable("The broker is away.")

    job = service(stack, RecordingPublisher(fail)).enqueue_generation("x")
    assert (row(ledger, job.id).published_at, row(ledger, job.id).published_epoch) == (None, None)


def test_a_job_that_is_marked_with_an_epoch_of_before_a_flush_is_published_again(
    stack: WorkerServices,
) -> None:
    """The epoch is not read for every enqueue; what was read a moment ago errs to the safe side."""
    before = stack.publisher.epoch()
    stack.redis.flushdb()
    job = stack.jobs.enqueue_generation("x")
    assert row(stack.ledger, job.id).published_epoch == before
    assert stack.outbox.publish() == 1
    assert row(stack.ledger, job.id).published_epoch == stack.publisher.epoch() != before
    assert stack.outbox.publish() == 0
    assert messages(stack)["generation"] == [str(job.id)] * 2


def test_a_job_whose_enqueuer_died_before_publishing_is_published_later(
    stack: WorkerServices, ledger: Ledger
) -> None:
    class Died(BaseException):
        pass

    def die(_: JobMessage) -> None:
        raise Died

    with pytest.raises(Died):
        service(stack, RecordingPublisher(die)).enqueue_generation("x")
    with ledger.transaction() as unit:
        queue = [str(Queue.GENERATION)]
        assert not unit.outbox.take_unpublished("epoch", idle_queues=queue, patience=10.0, limit=10)
        due = unit.outbox.take_unpublished("epoch", idle_queues=queue, patience=0.0, limit=10)
        assert len(due) == 1


def test_a_worker_faster_than_the_note_of_the_message_loses_no_retry(
    stack: WorkerServices, ledger: Ledger
) -> None:
    """The message is consumed, and the job put back, before its enqueuer has noted it."""
    stack.heartbeat.beat()

    def work(message: JobMessage) -> None:
        with ledger.transaction() as unit:
            claim = unit.steps.claim(message.job_id, stack.worker_id)
            assert claim is not None
            unit.steps.retry_later(claim, 0.0, "OVERLOADED", "busy", counts=True)

    job = service(stack, RecordingPublisher(work)).enqueue_generation("x")
    with ledger.transaction() as unit:
        # A queue that is never empty: there only the note says that the job needs a message.
        due = unit.outbox.take_unpublished("epoch", idle_queues=[], patience=10.0, limit=10)
        assert [found.id for found in due] == [job.id]


# The outbox


@pytest.fixture
def outbox(stack: WorkerServices, publisher: RecordingPublisher) -> Outbox:
    return outbox_of(stack, publisher=publisher)


def unpublished(stack: WorkerServices, count: int) -> list[UUID]:
    """Jobs that were accepted a while ago while the broker was away."""
    silent = RecordingPublisher()
    silent.works = False
    ids = [service(stack, silent).enqueue_generation(f"{number}").id for number in range(count)]
    age(stack.ledger, 6)
    return ids


def change(ledger: Ledger, job_id: UUID, assignments: str) -> None:
    with ledger.transaction() as unit:
        query = f"UPDATE jobs SET {assignments} WHERE id = :id"
        unit.session.execute(text(query), {"id": job_id})


def test_a_broker_that_fails_in_mid_round_gets_the_rest_later(
    stack: WorkerServices, ledger: Ledger, publisher: RecordingPublisher, outbox: Outbox
) -> None:
    ids = unpublished(stack, 4)

    def fail_at_the_third(_: JobMessage) -> None:
        if len(publisher.published) == 2:
            raise BrokerUnavailable("gone")

    publisher.on_publish = fail_at_the_third
    assert outbox.publish() == 0
    # Nobody knows which of a batch have left: a second message for a job does nothing.
    assert [id_ for id_ in ids if row(ledger, id_).published_at is not None] == []
    publisher.on_publish = lambda message: None
    assert outbox.publish() == 4
    assert sorted(publisher.published[2:]) == sorted(ids)


def test_outboxes_that_meet_publish_each_job_once(
    stack: WorkerServices, publisher: RecordingPublisher, ledger: Ledger
) -> None:
    ids = unpublished(stack, 20)
    start = threading.Barrier(4, timeout=PATIENCE)

    def reconcile(_: int) -> int:
        one = outbox_of(stack, publisher=publisher)
        start.wait()
        return one.publish()

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(reconcile, range(4))) == 20
    assert sorted(publisher.published) == sorted(ids)


def test_only_jobs_that_are_due_and_need_it_are_published(
    stack: WorkerServices, ledger: Ledger, publisher: RecordingPublisher, outbox: Outbox
) -> None:
    waits, due, cancelled, fresh, old, other = unpublished(stack, 6)
    change(ledger, waits, "not_before = now() + interval '1 h'")
    change(ledger, due, "not_before = now()")
    stack.jobs.cancel(cancelled)
    change(ledger, fresh, "rung_at = now(), rung_epoch = 'epoch'")
    change(ledger, old, "rung_at = now() - interval '1 h', rung_epoch = 'epoch'")
    change(ledger, other, "rung_at = now(), rung_epoch = 'before the flush'")
    publisher.published = [uuid4()]  # a backlog: the old one's message may still wait in it
    assert outbox.publish() == 2
    assert set(publisher.published[1:]) == {due, other}
    publisher.published = []  # nothing waits: its message is gone
    assert outbox.publish() == 1
    assert publisher.published == [old]


def test_a_lost_message_is_published_again_also_while_others_wait(
    stack: WorkerServices, ledger: Ledger, publisher: RecordingPublisher, outbox: Outbox
) -> None:
    """A queue that is never empty must not keep a job for ever whose message was lost.

    Messages are taken in order: when a later one has been taken, the earlier one is gone.
    """
    lost, taken, *waiting = unpublished(stack, 4)
    change(ledger, lost, "rung_at = now() - interval '3 h', rung_epoch = 'epoch'")
    change(ledger, taken, "rung_at = now() - interval '2 h', rung_epoch = 'epoch'")
    for job_id in waiting:
        change(ledger, job_id, "rung_at = now(), rung_epoch = 'epoch'")
    with ledger.transaction() as unit:
        rung_at = unit.jobs.get_all([taken])[0].published_at
        claim = unit.steps.claim(taken, stack.worker_id, rung_at)
        assert claim is not None
        unit.steps.succeed(claim, {"text": "done"})
    publisher.published = list(waiting)
    assert outbox.publish() == 1
    assert publisher.published == [*waiting, lost]


def test_an_old_message_of_a_republished_job_says_nothing_about_other_jobs(
    stack: WorkerServices, ledger: Ledger, publisher: RecordingPublisher, outbox: Outbox
) -> None:
    """Only the message knows when it was sent: by the job's row, a whole backlog would be lost."""
    published_again, *backlog = unpublished(stack, 4)
    for job_id in backlog:
        change(ledger, job_id, "rung_at = now() - interval '1 h', rung_epoch = 'epoch'")
    first = "rung_at = now() - interval '2 h', rung_epoch = 'epoch'"
    change(ledger, published_again, first)
    with ledger.transaction() as unit:
        sent_at = unit.jobs.get_all([published_again])[0].published_at
    change(ledger, published_again, "rung_at = now()")
    with ledger.transaction() as unit:
        assert unit.steps.claim(published_again, stack.worker_id, sent_at)
    publisher.published = list(backlog)
    assert outbox.publish() == 0
