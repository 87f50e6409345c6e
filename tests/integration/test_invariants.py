"""One or more guards for each invariant of the design, against real servers.

Not here: the shared limiter of invariant 9 (only what a rate limit does to a job), which has
test_limiter.py, and invariant 12, which is about runs: acceptance/test_runs.py.
"""

import asyncio
import hashlib
import json
import logging
import math
import threading
from base64 import b64decode
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Self
from uuid import UUID, uuid4

import numpy as np
import pytest
from celery.result import AsyncResult
from pydantic import JsonValue
from redis import Redis
from sqlalchemy import create_engine, text

from promptstack.config.names import Queue
from promptstack.config.settings import Settings
from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.jobs.jobs import Claim
from promptstack.repositories.models import Attempt, Job, JobKind, JobState
from promptstack.repositories.session import UnitOfWork
from promptstack.services.errors import WrongState
from promptstack.services.execution.executor import JobOutcome
from promptstack.services.jobs.new_job import JobDefaults
from promptstack.services.jobs.progress import Progress
from promptstack.services.jobs.publishing import JobMessage
from promptstack.services.jobs.service import JobService
from promptstack.services.jobs.views import JobView
from promptstack.services.llm.base import (
    Capability,
    EmbeddingLimits,
    EmbeddingResponse,
    LLMResponse,
    LLMService,
)
from promptstack.services.llm.errors import (
    InvalidProviderRequest,
    Overloaded,
    ProviderError,
    RateLimited,
)
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.maintenance.liveness import Liveness
from promptstack.services.maintenance.reconciler import Reconciler
from promptstack.tasks.composition import PromptStack
from tests.processes import Process, wait_until
from tests.simulators import ForkedSimulator

MARK = "marmalade"
"""Stands in prompts, documents and answers, and may stand nowhere but in PostgreSQL."""
NO_REDIS = "unix:///nowhere/at/all.sock"
BATCH = 2
"""Passages that the fake provider takes in one call."""
PASSAGE = {"chunk_tokens": 16, "chunk_overlap_tokens": 0}
"""How long a passage is in these tests."""


class Provider:
    """What a fake provider was asked, and what it does then; a test sets both."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.batches: list[list[str]] = []
        self.on_call: Callable[[], Awaitable[None] | None] = lambda: None
        """Called on the event loop as the request leaves; may wait, look around, or raise."""
        self.answer: Callable[[str], str] = lambda prompt: f"You said: {prompt}"
        self.usage = 2

    @property
    def calls(self) -> int:
        return len(self.prompts) + len(self.batches)

    @property
    def embedded(self) -> list[str]:
        return [text for batch in self.batches for text in batch]

    async def called(self) -> None:
        waits = self.on_call()
        if waits is not None:
            await waits


@pytest.fixture
def stack(settings: Settings) -> Iterator[PromptStack]:
    """As everywhere, with passages that are short."""
    with PromptStack.open(settings.model_copy(update=PASSAGE)) as opened:
        yield opened


@pytest.fixture
def provider(stack: PromptStack) -> Provider:
    """The provider `fake` of this worker."""
    made = Provider()
    employ(stack, made)
    return made


def employ(stack: PromptStack, provider: Provider) -> None:
    """Let `stack` be a live worker that asks this provider."""

    class Fake(LLMService):
        is_limited = False  # the limiter has tests of its own
        name = "fake"
        default_models: ClassVar = {Capability.GENERATION: "f-1", Capability.EMBEDDING: "f-1"}
        embedding_limits = EmbeddingLimits(items=BATCH, bytes=10_000)

        async def _generate(
            self, request: GenerationRequest, user_id: UUID | None, failures: int
        ) -> LLMResponse:
            provider.prompts.append(request.prompt or "")
            await provider.called()
            return LLMResponse(
                provider.answer(request.prompt or ""), "f-1", provider.usage, 3, "stop"
            )

        async def _embed(
            self, texts: Sequence[str], model: str, user_id: UUID | None
        ) -> EmbeddingResponse:
            provider.batches.append(list(texts))
            await provider.called()
            return EmbeddingResponse(np.ones((len(texts), 3), np.float32), model, len(texts))

        def estimate_tokens(self, text: str) -> int:
            return len(text)

        async def is_available(self) -> bool:
            return True

    stack.factory.register("fake", Fake)
    stack.heartbeat.beat()


@contextmanager
def another(stack: PromptStack, **changes: object) -> Iterator[PromptStack]:
    """Another process on the same ledger."""
    with PromptStack.open(stack.settings.model_copy(update=changes)) as opened:
        yield opened


def generate(stack: PromptStack, prompt: str = "Hello.", **how: Any) -> JobView:
    return stack.jobs.enqueue_generation(prompt, provider="fake", **how)


def embed(stack: PromptStack, *passages: str, source: str = "a.txt", **how: Any) -> JobView:
    """A job for a document that is cut into exactly these passages."""
    text = "\n\n".join(map(padded, passages))
    return stack.jobs.enqueue_embedding(text, source=source, provider="fake", **how)


def padded(passage: str) -> str:
    """A passage so long that no two of them fit into one chunk."""
    return passage + " word" * 9


def first_words(texts: Sequence[str]) -> list[str]:
    return [text.split()[0] for text in texts]


def run(stack: PromptStack, job: JobView) -> JobOutcome:
    """Do what a worker does with the job's message, in this thread."""
    service = stack.generation if job.kind is JobKind.GENERATION else stack.embedding
    return service.run(job.id, lambda progress: None)


def state(stack: PromptStack, job: JobView) -> JobState:
    return stack.jobs.get(job.id).state


def row(stack: PromptStack, job: JobView) -> Job:
    with stack.ledger.transaction() as unit:
        found = unit.jobs.get(job.id)
        assert found is not None
        return found


def columns(stack: PromptStack, job: JobView) -> dict[str, Any]:
    """The whole row, to see whether anything changed."""
    with stack.ledger.transaction() as unit:
        query = text("SELECT to_jsonb(jobs) FROM jobs WHERE id = :id")
        found: dict[str, Any] = unit.session.scalar(query, {"id": job.id})
        return found


def attempts(stack: PromptStack, job: JobView) -> list[Attempt]:
    with stack.ledger.transaction() as unit:
        return list(unit.attempts.get_many(job_id=job.id))


def sql(stack: PromptStack, statement: str, **values: object) -> None:
    with stack.ledger.transaction() as unit:
        unit.session.execute(text(statement), values)


def make_due(stack: PromptStack, job: JobView) -> None:
    sql(stack, "UPDATE jobs SET not_before = now() WHERE id = :id", id=job.id)


def claim(stack: PromptStack, job: JobView, worker_id: UUID | None = None) -> Claim | None:
    with stack.ledger.transaction() as unit:
        return unit.jobs.claim(job.id, worker_id or stack.worker_id)


def claimed(stack: PromptStack, job: JobView, worker_id: UUID | None = None) -> Claim:
    found = claim(stack, job, worker_id)
    assert found is not None
    return found


def queued_messages(stack: PromptStack) -> int:
    return sum(stack.publisher.waiting(queue) for queue in Queue)


def raises(*errors: BaseException) -> Callable[[], None]:
    """Raise these on the first calls, one each; then nothing."""
    left = iter(errors)

    def act() -> None:
        for error in left:
            raise error

    return act


class Gate:
    """Holds the provider's calls on the event loop until a test opens it."""

    def __init__(self, stack: PromptStack) -> None:
        self._loop = stack.loop
        self._open = asyncio.Event()
        self._reached = threading.Event()

    async def __call__(self) -> None:
        self._reached.set()
        await self._open.wait()

    def wait(self) -> None:
        """Until a call is held."""
        assert self._reached.wait(30)

    def open(self) -> None:
        async def set_() -> None:
            self._open.set()

        self._loop.run(set_())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()  # a test that fails must not wait for the call's time-out


# 1. Accepted means committed


def test_invariant_01_a_job_is_committed_when_its_message_leaves_and_when_enqueue_answers(
    stack: PromptStack, provider: Provider
) -> None:
    engine = create_engine(stack.database_url)
    seen: list[int] = []

    class RecordingPublisher:
        def epoch(self) -> str:
            return "epoch"

        def uptime(self) -> float | None:
            return None

        def waiting(self, queue: Queue) -> int:
            return 0

        def publish(self, message: JobMessage) -> None:
            with engine.connect() as connection:
                query = text("SELECT count(*) FROM jobs WHERE id = :id")
                seen.append(connection.execute(query, {"id": message.job_id}).scalar_one())

        def publish_all(self, messages: Sequence[JobMessage]) -> None:
            for message in messages:
                self.publish(message)

    defaults = JobDefaults("fake", "fake", max_retries=3, expires_seconds=60, max_text_bytes=99)
    jobs = JobService(stack.ledger, RecordingPublisher(), stack.progress, stack.factory, defaults)
    job = jobs.enqueue_generation("x")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT id FROM jobs")).scalars().all() == [job.id]
    engine.dispose()
    assert seen == [1]


def test_invariant_01_a_job_is_accepted_without_a_broker_and_published_later(
    stack: PromptStack, provider: Provider
) -> None:
    with another(stack, redis_url=NO_REDIS) as cut_off:
        cut_off.factory.register("fake", stack.factory.service_class("fake"))
        job = generate(cut_off)
    assert (state(stack, job), row(stack, job).rung_at) == (JobState.QUEUED, None)
    sql(stack, "UPDATE jobs SET created_at = created_at - interval '6 s'")
    assert stack.reconciler.run_once() == 1
    assert stack.publisher.waiting(Queue.GENERATION) == 1


# 2. Messages carry ids, never prompts


def everything_in(redis_url: str) -> str:
    """Every key and value of a Redis database as text, also what is in base64 within it."""
    found: list[bytes] = []
    with Redis.from_url(redis_url) as redis:
        readers: dict[bytes, Callable[[bytes], Any]] = {
            b"string": redis.get,
            b"list": lambda key: redis.lrange(key, 0, -1),
            b"set": redis.smembers,
            b"hash": redis.hgetall,
            b"zset": lambda key: redis.zrange(key, 0, -1),
            b"stream": redis.xrange,
        }
        for key in redis.scan_iter():
            found += [key, repr(readers[redis.type(key)](key)).encode()]
    text_ = b"\n".join(found).decode(errors="replace")
    for word in text_.replace('\\"', '"').split('"'):
        if len(word) > 20 and len(word) % 4 == 0:
            try:
                text_ += b64decode(word, validate=True).decode(errors="replace")
            except ValueError:
                continue
    return text_


def test_invariant_02_a_message_is_json_and_holds_only_the_jobs_id(
    stack: PromptStack, provider: Provider
) -> None:
    job = generate(stack, f"{MARK} {MARK}", system=MARK, idempotency_key=MARK, stop=[MARK])
    raw: Any = stack.redis.lrange("generation", 0, -1)
    [message] = [json.loads(entry) for entry in raw]
    assert (message["content-type"], message["headers"]["task"]) == (
        "application/json",
        "tasks.generation.generate_text",
    )
    arguments, keywords, _ = json.loads(b64decode(message["body"]))
    [job_id, sent_at] = arguments
    assert (job_id, keywords) == (str(job.id), {})
    assert datetime.fromisoformat(sent_at) == job.created_at
    assert MARK not in everything_in(stack.redis_url)


def test_invariant_02_no_content_and_no_key_is_in_redis_or_the_log(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    fates: list[dict[str, JsonValue]] = [
        {},
        {"fail_times": 1},
        {"fail_times": 9, "fail_with": "invalid"},
        {"delay_seconds": MARK},
    ]
    generations = [
        stack.jobs.enqueue_generation(f"{MARK} {number}", options=options)
        for number, options in enumerate(fates)
    ]
    embedding = stack.jobs.enqueue_embedding(f"{MARK} document", source=f"{MARK}.txt")
    seen = everything_in(stack.redis_url)
    assert str(embedding.id) in seen
    assert MARK not in seen
    with ForkedSimulator() as simulator:
        simulator.control({"kind": "status", "status": 400})
        address = {"OPENAI_BASE_URL": simulator.url, "OPENAI_API_KEY": f"sk-{MARK}"}
        worker = start_worker(DEBUG="true", LOG_FORMAT="json", **address)
        generations += [
            stack.jobs.enqueue_generation(f"{MARK} {number}", provider="openai")
            for number in range(2)
        ]
        for job in (*generations, embedding):
            wait_until(lambda job=job: state(stack, job).is_final, f"its end; {worker.log}")  # type: ignore[misc]
            ready: AsyncResult[Any] = AsyncResult(str(job.id), app=stack.celery)
            wait_until(ready.ready, "its result in the backend")
    answered = [stack.jobs.get(job.id).result for job in generations]
    assert sum(result is not None for result in answered) == 3
    assert MARK in json.dumps(answered)
    assert MARK not in everything_in(stack.redis_url)
    assert str(embedding.id) in worker.output()
    assert MARK not in worker.output()


def test_invariant_02_also_a_bug_that_quotes_a_prompt_stays_out_of_sight(
    stack: PromptStack, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    provider.on_call = raises(KeyError(f"{MARK} in a bug"), Overloaded("busy", detail=MARK))
    jobs = [generate(stack, MARK), generate(stack, MARK)]
    outcomes = [run(stack, job) for job in jobs]
    assert [outcome.state for outcome in outcomes] == [JobState.FAILED, JobState.QUEUED]
    shown = [repr(outcomes), caplog.text, everything_in(stack.redis_url)]
    shown += [str(stack.jobs.get(job.id).error) for job in jobs]
    assert MARK not in "".join(shown)
    # To the job's owner only:
    assert stack.jobs.get_attempts(jobs[1].id)[0].detail == MARK


# 3. Losing every message loses no job


def test_invariant_03_a_flush_in_mid_run_loses_no_job(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    start_worker(WORKER_CONCURRENCY="2")
    delays = [1.5, *(0.1 for _ in range(9))]
    jobs = [
        stack.jobs.enqueue_generation(f"{number}", options={"delay_seconds": delay})
        for number, delay in enumerate(delays)
    ]
    jobs += [stack.jobs.enqueue_embedding(f"{n}", source=f"{n}") for n in range(5)]

    def tally() -> Counter[str]:
        with stack.ledger.transaction() as unit:
            return Counter(unit.session.scalars(text("SELECT state FROM jobs")).all())

    middle = {JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED}
    wait_until(lambda: set(tally()) == middle, "the middle of the run")
    stack.redis.flushdb()
    wait_until(lambda: tally()[JobState.SUCCEEDED] == len(jobs), "the end of every job")
    # Nothing was asked for twice.
    assert {stack.jobs.get(job.id).attempt for job in jobs} == {1}


# 4. A claim is fenced


def test_invariant_04_of_many_claims_at_once_one_wins(
    stack: PromptStack, provider: Provider
) -> None:
    for _ in range(5):
        job = generate(stack)
        start = threading.Barrier(4)

        def take(_: int, job: JobView = job, start: threading.Barrier = start) -> Claim | None:
            start.wait()
            return claim(stack, job, uuid4())

        with ThreadPoolExecutor(4) as pool:
            won = [found for found in pool.map(take, range(4)) if found is not None]
        assert [found.attempt for found in won] == [1]
        held = row(stack, job)
        assert (held.worker_id, held.attempt) == (won[0].worker_id, 1)


STALE: dict[str, Callable[[Any, Claim], object]] = {
    "succeed": lambda jobs, stale: jobs.succeed(stale, {"text": "stale"}),
    "fail": lambda jobs, stale: jobs.fail(stale, "STALE", "stale"),
    "retry": lambda jobs, stale: jobs.retry_later(stale, 0.0, "STALE", "stale", counts=True),
    "progress": lambda jobs, stale: jobs.set_progress(stale, 7, 9),
    "check": lambda jobs, stale: jobs.check_claim(stale),
}


def test_invariant_04_a_stale_attempt_changes_nothing(
    stack: PromptStack, provider: Provider, subtests: pytest.Subtests
) -> None:
    job = generate(stack)
    stale = claimed(stack, job)
    with stack.ledger.transaction() as unit:
        assert unit.jobs.release(job.id, stale.attempt)
    # Nobody holds it, another holds it, it has ended.
    for situation in ("queued", "running", "succeeded"):
        if situation == "running":
            fresh = claimed(stack, job)
            assert fresh.attempt == stale.attempt + 1
        if situation == "succeeded":
            with stack.ledger.transaction() as unit:
                unit.jobs.succeed(fresh, {"text": "right"})
        before = columns(stack, job)
        assert before["state"] == situation
        for name, store in STALE.items():
            if (name, situation) == ("succeed", "queued"):
                continue  # its answer is welcome: nobody else has asked for one
            with subtests.test(f"{name} of a {situation} job"):
                with pytest.raises(ClaimLost), stack.ledger.transaction() as unit:
                    store(unit.jobs, stale)
                assert columns(stack, job) == before
        with stack.ledger.transaction() as unit:
            assert not unit.jobs.release(job.id, stale.attempt)


def test_invariant_05_a_worker_that_claims_is_alive(
    stack: PromptStack, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose heartbeats are late must not pay for jobs that are freed at once."""
    monkeypatch.setattr(stack.heartbeat, "_beat_at", -math.inf)
    sql(stack, "UPDATE workers SET heartbeat_at = now() - interval '1 h'")
    claims = []

    def look() -> None:
        with stack.ledger.transaction() as unit:
            claims.append(len(unit.upkeep.free_lost(60.0)))

    provider.on_call = look
    assert run(stack, generate(stack)).state is JobState.SUCCEEDED
    assert claims == [0]


def test_invariant_04_an_answer_that_comes_late_is_stored_while_nobody_else_asks(
    stack: PromptStack, provider: Provider
) -> None:
    """Its worker was counted as dead, or a person cancelled and retried: asking again would pay
    twice."""

    def count_as_dead() -> None:
        sql(stack, "UPDATE workers SET heartbeat_at = now() - interval '1 h'")
        with stack.ledger.transaction() as unit:
            assert [freed.id for freed in unit.upkeep.free_lost(60.0)] == [job.id]

    def cancel_and_retry() -> None:
        stack.jobs.cancel(again.id)
        stack.jobs.retry(again.id)

    job, again = generate(stack), generate(stack)
    stack.heartbeat.beat()
    for one, happens in ((job, count_as_dead), (again, cancel_and_retry)):
        provider.on_call = happens
        assert run(stack, one).state is JobState.SUCCEEDED
        held = row(stack, one)
        assert (held.state, held.attempt, held.worker_id) == (JobState.SUCCEEDED, 1, None)
        assert held.result is not None
        assert [attempt.state for attempt in attempts(stack, one)] == ["succeeded"]


def test_invariant_04_an_answer_that_comes_after_a_takeover_is_not_stored(
    stack: PromptStack, provider: Provider
) -> None:
    job = generate(stack)
    fresh: list[Claim] = []

    def lose_the_job() -> None:
        with stack.ledger.transaction() as unit:
            assert unit.jobs.release(job.id, 1)
        fresh.append(claimed(stack, job, uuid4()))

    provider.on_call = lose_the_job
    assert run(stack, job).state is None
    held = row(stack, job)
    assert (held.state, held.attempt, held.result) == (JobState.RUNNING, 2, None)
    assert held.worker_id == fresh[0].worker_id


def test_invariant_04_a_second_delivery_does_nothing(
    stack: PromptStack, provider: Provider
) -> None:
    job = generate(stack)
    with another(stack) as other, ThreadPoolExecutor(1) as pool, Gate(stack) as gate:
        provider.on_call = gate
        employ(other, provider)
        first = pool.submit(run, stack, job)
        gate.wait()
        before = columns(stack, job)
        assert run(stack, job).state is None  # in the process that runs it
        assert run(other, job).state is None  # in another one
        assert columns(stack, job) == before
        gate.open()
        assert first.result(30).state is JobState.SUCCEEDED
        before = columns(stack, job)
        for late in (stack, other):
            outcome = run(late, job)
            assert (outcome.state, outcome.summary["calls"]) == (JobState.SUCCEEDED, 1)
        assert columns(stack, job) == before
    assert (provider.calls, len(attempts(stack, job))) == (1, 1)


def test_invariant_04_a_message_that_names_no_job_does_nothing(stack: PromptStack) -> None:
    stack.heartbeat.beat()
    assert stack.generation.run(uuid4(), lambda progress: None) == JobOutcome(state=None)


# 5. Workers are alive or dead by heartbeat


class Clock:
    """The database's clock, as a test moves it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self, unit: UnitOfWork) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def new_reconciler(stack: PromptStack, clock: Clock, silence: float = 15.0) -> Reconciler:
    return Reconciler(
        stack.ledger,
        stack.publisher,
        stack.progress,
        stack.waiting_jobs,
        stack.dispatch,
        liveness=Liveness(stack.ledger, worker_lost_seconds=silence, clock=clock),
    )


def reconciler_of(stack: PromptStack, clock: Clock, silence: float = 15.0) -> Reconciler:
    made = new_reconciler(stack, clock, silence)
    made.run_once()
    for _ in range(3):
        clock.move(silence / 3)
        made.run_once()
    return made


def test_invariant_05_silence_frees_a_dead_workers_jobs_and_only_these(
    stack: PromptStack, provider: Provider
) -> None:
    reconciler = reconciler_of(stack, Clock())
    dead, gone = uuid4(), uuid4()
    with stack.ledger.transaction() as unit:
        unit.workers.beat(dead, "host", 1)
    jobs = {worker: generate(stack) for worker in (stack.worker_id, dead, gone)}
    for worker, job in jobs.items():
        claimed(stack, job, worker)
    # A long job of a live worker is no orphan.
    sql(stack, "UPDATE jobs SET started_at = now() - interval '3 days', created_at = started_at")
    silence = "UPDATE workers SET heartbeat_at = now() - make_interval(secs => :s) WHERE id = :id"
    sql(stack, silence, s=14, id=dead)
    reconciler.run_once()
    assert state(stack, jobs[dead]) is JobState.RUNNING
    assert state(stack, jobs[gone]) is JobState.QUEUED  # its worker's row is not even there
    sql(stack, silence, s=16, id=dead)
    reconciler.run_once()
    freed = row(stack, jobs[dead])
    assert (freed.state, freed.attempt, freed.failures) == (JobState.QUEUED, 1, 1)
    assert (freed.worker_id, freed.error_code) == (None, "WORKER_LOST")
    assert freed.rung_at is not None
    assert state(stack, jobs[stack.worker_id]) is JobState.RUNNING
    assert run(stack, jobs[dead]).state is JobState.SUCCEEDED


def test_invariant_05_a_job_that_kills_its_workers_ends(
    stack: PromptStack, provider: Provider
) -> None:
    reconciler = reconciler_of(stack, Clock())
    job = generate(stack, max_retries=2)
    for failures in (1, 2, 3):
        lost = claimed(stack, job, uuid4())
        with stack.ledger.transaction() as unit:
            unit.attempts.start(lost, call=0, provider=lost.provider, model=lost.model, items=1)
        reconciler.run_once()
        assert row(stack, job).failures == failures
    ended = stack.jobs.get(job.id)
    assert (ended.state, ended.error_code, ended.attempt) == (JobState.FAILED, "WORKER_LOST", 3)
    assert [attempt.state for attempt in attempts(stack, job)] == ["lost"] * 3


def test_invariant_05_nobodys_silence_counts_while_the_ledger_itself_was_away(
    stack: PromptStack, provider: Provider
) -> None:
    clock = Clock()
    job = generate(stack)
    claimed(stack, job)
    sql(stack, "UPDATE workers SET heartbeat_at = now() - interval '1 h'")
    reconciler = new_reconciler(stack, clock)
    # Nobody had ever looked; it lost its clock; it hung, or its host slept, of which 20 s don't
    # count, and then the living get a moment to find it again.
    for happens, steps in (
        (0.0, (0.0, 5.0, 5.0, 4.9)),
        (-3_600.0, (0.0, 5.0, 5.0)),
        (20.0, (0.0, 4.9)),
    ):
        clock.move(happens)
        for passed in steps:
            clock.move(passed)
            reconciler.run_once()
            assert state(stack, job) is JobState.RUNNING
    clock.move(0.2)
    reconciler.run_once()
    assert state(stack, job) is JobState.QUEUED


def test_invariant_05_nobodys_silence_counts_that_hung_with_the_ledger_within_a_round(
    stack: PromptStack, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger was watched, hung for 20 s, and the round went on before any heartbeat."""
    clock, real = Clock(), UnitOfWork.try_lock
    reconciler = reconciler_of(stack, clock)
    job = generate(stack)
    claimed(stack, job)

    def hang(self: UnitOfWork, name: str) -> bool:
        if name == "reconciler":
            monkeypatch.setattr(UnitOfWork, "try_lock", real)
            clock.move(20.0)
            sql(stack, "UPDATE workers SET heartbeat_at = now() - interval '20 s'")
        return real(self, name)

    monkeypatch.setattr(UnitOfWork, "try_lock", hang)
    reconciler.run_once()
    assert state(stack, job) is JobState.RUNNING


def test_invariant_05_a_new_process_knows_what_others_have_seen(
    stack: PromptStack, provider: Provider
) -> None:
    """Where workers come and go, each would else wait anew before it frees what the dead held."""
    clock = Clock()
    reconciler_of(stack, clock)
    job = generate(stack)
    claimed(stack, job)
    sql(stack, "UPDATE workers SET heartbeat_at = now() - interval '16 s'")
    clock.move(1.0)
    new_reconciler(stack, clock).run_once()
    assert state(stack, job) is JobState.QUEUED


def test_invariant_05_a_job_on_record_that_is_not_in_hand_is_handed_back(
    stack: PromptStack, provider: Provider
) -> None:
    job, other = generate(stack), generate(stack)
    claimed(stack, job)
    claimed(stack, other, uuid4())
    stack.heartbeat.beat()
    assert (state(stack, job), row(stack, job).failures) == (JobState.QUEUED, 0)
    assert state(stack, other) is JobState.RUNNING


def test_invariant_05_an_old_attempt_in_hand_does_not_keep_a_newer_one_on_record(
    stack: PromptStack, provider: Provider
) -> None:
    """The newer one was claimed over a connection that broke before it could tell us."""
    job = generate(stack)
    with stack.active_jobs.in_hand(job.id) as old:
        old.attempt = claimed(stack, job).attempt
        stack.heartbeat.beat()
        assert state(stack, job) is JobState.RUNNING
        with stack.ledger.transaction() as unit:
            assert unit.jobs.release(job.id, old.attempt)
        claimed(stack, job)
        stack.heartbeat.beat()
        assert state(stack, job) is JobState.QUEUED


# 6. No database session is held during a provider call


def test_invariant_06_no_connection_and_no_transaction_is_held_during_a_call(
    stack: PromptStack, provider: Provider
) -> None:
    watcher = create_engine(stack.database_url, isolation_level="AUTOCOMMIT")
    seen: list[tuple[int, int]] = []
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'idle'"
    )

    def look() -> None:
        with watcher.connect() as connection:
            busy = connection.execute(query).scalar_one()
        seen.append((busy, stack.ledger.engine.pool.checkedout()))  # type: ignore[attr-defined]

    provider.on_call = look
    assert run(stack, generate(stack)).state is JobState.SUCCEEDED
    assert run(stack, embed(stack, "a", "b", "c")).state is JobState.SUCCEEDED
    watcher.dispose()
    assert seen == [(0, 0)] * 3


# 7. Stored before acknowledged; paid once


def test_invariant_07_the_attempt_is_on_record_before_the_request_leaves(
    stack: PromptStack, provider: Provider
) -> None:
    seen: list[tuple[int, int, str, int]] = []

    def look() -> None:
        with another(stack) as other, other.ledger.transaction() as unit:
            started = unit.attempts.get_many(state="started")
            seen.extend((row.number, row.call, row.provider, row.items) for row in started)
            assert {row.worker_id for row in started} == {stack.worker_id}

    provider.on_call = look
    run(stack, generate(stack))
    run(stack, embed(stack, "a", "b", "c"))
    assert seen == [(1, 0, "fake", 1), (1, 0, "fake", 2), (1, 1, "fake", 1)]
    with stack.ledger.transaction() as unit:
        settled = unit.attempts.get_many()
        assert {attempt.state for attempt in settled} == {"succeeded"}
        assert all(attempt.finished_at and attempt.latency_seconds for attempt in settled)


def test_invariant_07_stored_vectors_are_not_asked_for_again(
    stack: PromptStack, provider: Provider
) -> None:
    job = embed(stack, "a", "b", "c", "d", "e")
    failing = raises(Overloaded("busy"))
    provider.on_call = lambda: failing() if provider.calls == 2 else None
    assert run(stack, job).state is JobState.QUEUED
    assert (stack.jobs.get(job.id).current, stack.jobs.get(job.id).total) == (2, 5)
    make_due(stack, job)
    assert run(stack, job).state is JobState.SUCCEEDED
    assert [first_words(batch) for batch in provider.batches] == [
        ["a", "b"],
        ["c", "d"],
        ["c", "d"],
        ["e"],
    ]
    result = stack.jobs.get(job.id).result
    assert result is not None
    assert (result["chunks"], result["embedded"], result["reused"]) == (5, 5, 0)


def test_invariant_07_the_same_passage_is_paid_for_once_within_a_document(
    stack: PromptStack, provider: Provider
) -> None:
    """Also where its places are far enough apart to fall into different calls."""
    job = embed(stack, "a", "b", "c", "a", "d", "c", "b")
    assert run(stack, job).state is JobState.SUCCEEDED
    assert sorted(first_words(provider.embedded)) == ["a", "b", "c", "d"]
    result = stack.jobs.get(job.id).result
    assert result is not None
    assert (result["chunks"], result["embedded"], result["reused"]) == (7, 4, 3)
    assert (stack.jobs.get(job.id).current, stack.jobs.get(job.id).total) == (7, 7)


def test_invariant_07_the_same_passage_is_paid_for_once_over_all_documents(
    stack: PromptStack, provider: Provider
) -> None:
    run(stack, embed(stack, "a", "b", source="one"))
    run(stack, embed(stack, "b", "c", source="two"))
    again = embed(stack, "a", "b", source="one")
    assert run(stack, again).state is JobState.SUCCEEDED
    run(stack, embed(stack, "a", "x", "b", source="one"))
    assert first_words(provider.embedded) == ["a", "b", "c", "x"]
    result = stack.jobs.get(again.id).result
    assert result is not None
    assert (result["embedded"], result["reused"], result["provider_calls"]) == (0, 2, 0)


def two_users(stack: PromptStack) -> tuple[UUID, UUID]:
    with stack.ledger.transaction() as unit:
        ada, eve = (unit.users.create(email=f"{name}@example.org").id for name in ("ada", "eve"))
        return ada, eve


def numbers(stack: PromptStack, job: JobView) -> dict[str, Any]:
    assert run(stack, job).state is JobState.SUCCEEDED
    result = stack.jobs.get(job.id).result
    assert result is not None
    return {name: value for name, value in result.items() if name != "document_id"}


def test_invariant_07_users_pay_for_themselves_and_learn_nothing_of_each_other(
    stack: PromptStack, provider: Provider
) -> None:
    ada, eve = two_users(stack)
    alone = numbers(stack, embed(stack, "a", "b", "c", user_id=ada))
    assert numbers(stack, embed(stack, "a", "b", "c", user_id=eve)) == alone
    assert numbers(stack, embed(stack, "a", "b", "c")) == alone  # of the command line
    assert first_words(provider.embedded) == ["a", "b", "c"] * 3
    for user in (ada, eve, None):
        again = numbers(stack, embed(stack, "b", "c", source="other", user_id=user))
        assert (again["embedded"], again["reused"], again["tokens_used"]) == (0, 2, 0)


def test_invariant_07_no_user_waits_for_a_text_of_another(
    stack: PromptStack, provider: Provider
) -> None:
    ada, eve = two_users(stack)
    job = embed(stack, "a", "b", user_id=ada)
    with ThreadPoolExecutor(1) as pool, Gate(stack) as gate:
        provider.on_call = lambda: gate() if provider.calls == 1 else None
        first = pool.submit(run, stack, job)
        gate.wait()
        assert numbers(stack, embed(stack, "a", "b", user_id=eve))["embedded"] == 2
        gate.open()
        assert first.result(30).state is JobState.SUCCEEDED


def test_invariant_07_runs_and_documents_of_a_user_share_and_those_of_two_do_not(
    stack: PromptStack, provider: Provider
) -> None:
    ada, eve = two_users(stack)
    run(stack, embed(stack, "a", user_id=ada))
    for user, paid in ((ada, 0), (eve, 1), (None, 1)):
        ready = stack.runs.prepare_embedding([padded("a")], provider="fake", user_id=user)
        assert ready.to_pay == paid
        stack.runs.discard(ready.run_id)


def test_shared_vectors_are_taken_and_no_number_tells_it(
    stack: PromptStack, provider: Provider
) -> None:
    ada, eve = two_users(stack)
    with another(stack, share_vectors=True) as sharing:
        employ(sharing, provider)
        alone = numbers(sharing, embed(sharing, "a", "b", user_id=ada))
        assert numbers(sharing, embed(sharing, "a", "b", user_id=eve)) == alone
        assert set(alone) == {"chunks", "dimensions"}
    assert first_words(provider.embedded) == ["a", "b"]


def test_a_document_keeps_its_vectors_when_they_are_shared_no_longer_or_again(
    stack: PromptStack, provider: Provider
) -> None:
    """Also those from before users' vectors were apart: they were shared."""
    ada, eve = two_users(stack)
    with another(stack, share_vectors=True) as sharing:
        employ(sharing, provider)
        numbers(sharing, embed(sharing, "a", "b", user_id=ada))
        apart = numbers(stack, embed(stack, "a", "b", "c", user_id=ada))
        assert (apart["embedded"], apart["reused"]) == (1, 2)
        numbers(sharing, embed(sharing, "a", "b", "c", user_id=ada))
        assert first_words(provider.embedded) == ["a", "b", "c"]
    assert numbers(stack, embed(stack, "a", user_id=eve))["embedded"] == 1


def test_invariant_07_a_paid_answer_is_kept_whatever_characters_it_holds(
    stack: PromptStack, provider: Provider
) -> None:
    """services/text.py: what PostgreSQL can't store is replaced, and the answer is kept."""
    provider.answer = lambda prompt: "a\x00b\ud800c"
    job = generate(stack)
    assert run(stack, job).state is JobState.SUCCEEDED
    result = stack.jobs.get(job.id).result
    assert result is not None
    assert result["text"] == "a\ufffdb\ufffdc"
    assert provider.calls == 1


def test_invariant_07_an_answer_on_record_is_there_to_read(
    stack: PromptStack, provider: Provider
) -> None:
    """A worker killed between two commits must not leave a call that succeeded and no answer.

    The next worker would ask, and pay, for it again.
    """
    sql(stack, "CREATE TABLE unanswered (attempt_id bigint)")
    sql(
        stack,
        """
        CREATE FUNCTION check_answer() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO unanswered SELECT new.id FROM jobs
            WHERE jobs.id = new.job_id AND jobs.result IS NULL AND new.state = 'succeeded';
            RETURN NULL;
        END $$
        """,
    )
    sql(
        stack,
        "CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON attempts"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_answer()",
    )
    assert run(stack, generate(stack)).state is JobState.SUCCEEDED
    with stack.ledger.transaction() as unit:
        assert unit.session.scalar(text("SELECT count(*) FROM unanswered")) == 0


def test_invariant_07_jobs_with_the_same_passages_at_once_pay_once(
    stack: PromptStack, provider: Provider
) -> None:
    job = embed(stack, "a", "b", "c", "d")
    same = embed(stack, "x", "d", "a", "b", source="b.txt")
    with ThreadPoolExecutor(2) as pool, Gate(stack) as gate:
        provider.on_call = lambda: gate() if provider.calls == 1 else None
        first = pool.submit(run, stack, job)
        gate.wait()
        second = pool.submit(run, stack, same)
        # What only it needs, it pays for meanwhile; for the rest it waits.
        wait_until(lambda: stack.jobs.get(same.id).current == 1, "its own passage")
        gate.open()
        assert first.result(30).state is JobState.SUCCEEDED
        assert second.result(30).state is JobState.SUCCEEDED
    assert sorted(first_words(provider.embedded)) == ["a", "b", "c", "d", "x"]
    results = [stack.jobs.get(each.id).result or {} for each in (job, same)]
    assert [(result["embedded"], result["reused"]) for result in results] == [(4, 0), (1, 3)]
    with stack.ledger.transaction() as unit:
        assert unit.reservations.get_many() == []


def test_invariant_08_a_job_that_waits_long_for_another_ones_passages_leaves_the_worker(
    stack: PromptStack, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptstack.services.documents.embedding.SHARED_PATIENCE_SECONDS", 0.1)
    job, same = embed(stack, "a"), embed(stack, "a", source="b.txt")
    with ThreadPoolExecutor(1) as pool, Gate(stack) as gate:
        provider.on_call = gate
        first = pool.submit(run, stack, job)
        gate.wait()
        assert run(stack, same).state is JobState.QUEUED
        waits = stack.jobs.get(same.id)
        assert (waits.failures, waits.error_code) == (0, "EMBEDDED_ELSEWHERE")
        gate.open()
        assert first.result(30).state is JobState.SUCCEEDED
    make_due(stack, same)
    assert run(stack, same).state is JobState.SUCCEEDED
    assert first_words(provider.embedded) == ["a"]


def test_invariant_07_what_a_job_that_is_over_had_reserved_is_free(
    stack: PromptStack, provider: Provider
) -> None:
    """It failed, was cancelled, or its worker died."""
    for number, end_ in enumerate(("fail", "cancel", "lose")):
        text = f"p{number}"
        job, same = embed(stack, text, source=f"{number}"), embed(stack, text, source=f"{number}b")
        stale = claimed(stack, job)
        with stack.ledger.transaction() as unit:
            digest = hashlib.sha256(padded(text).encode()).digest()
            assert unit.reservations.take(stale, [digest]) == {digest}
            assert unit.reservations.take(replace(stale, job_id=same.id), [digest]) == set()
        with stack.ledger.transaction() as unit:
            if end_ == "fail":
                unit.jobs.fail(stale, "X", "x")
            elif end_ == "cancel":
                assert unit.jobs.cancel(job.id)
            else:
                unit.jobs.retry_later(stale, 0.0, "WORKER_LOST", "x", counts=True)
        assert run(stack, same).state is JobState.SUCCEEDED
    with stack.ledger.transaction() as unit:
        unit.reservations.take(replace(stale, job_id=same.id), [digest])
        unit.reservations.forget_idle()
        assert unit.reservations.get_many() == []


def test_invariant_07_an_answer_with_absurd_usage_is_kept(
    stack: PromptStack, provider: Provider
) -> None:
    provider.usage = 2**40
    job = generate(stack)
    assert run(stack, job).state is JobState.SUCCEEDED
    [attempt] = attempts(stack, job)
    assert (attempt.state, attempt.input_tokens, attempt.output_tokens) == ("succeeded", None, 3)


# 8. Waiting holds no worker slot


def test_invariant_08_a_job_that_backs_off_lies_in_the_ledger_until_it_is_due(
    stack: PromptStack, provider: Provider
) -> None:
    provider.on_call = raises(Overloaded("busy", retry_after=600.0))
    job = generate(stack)
    stack.redis.delete("generation")  # its message is taken
    threads = set(threading.enumerate())
    outcome = run(stack, job)
    assert outcome.state is JobState.QUEUED
    assert outcome.error == "PROVIDER_OVERLOADED: busy"
    assert outcome.retry_in == pytest.approx(600, abs=30)
    assert {thread.name for thread in set(threading.enumerate()) - threads} <= {"event-loop"}
    waiting = row(stack, job)
    assert (waiting.state, waiting.worker_id, waiting.rung_at) == (JobState.QUEUED, None, None)
    assert (waiting.attempt, waiting.failures) == (1, 1)
    # No message with an ETA, which would lie in a worker's memory; and none before its time.
    assert queued_messages(stack) == 0
    assert stack.reconciler.run_once() == 0
    assert claim(stack, job) is None
    make_due(stack, job)
    assert stack.reconciler.run_once() == 1
    assert queued_messages(stack) == 1
    assert run(stack, job).state is JobState.SUCCEEDED


def test_invariant_08_a_wait_without_measure_does_not_stop_the_worker(
    stack: PromptStack, provider: Provider
) -> None:
    """However long a provider says: the job waits, or ends, and is not asked again at once."""
    waits = [math.inf, math.nan, 1e13, -5.0]
    provider.on_call = raises(*(RateLimited("slow down", retry_after=wait) for wait in waits))
    for _ in waits:
        job = generate(stack)
        run(stack, job)
        stack.heartbeat.beat()
        left = row(stack, job)
        assert JobState(left.state).is_final or left.not_before is not None


def test_invariant_08_a_call_that_cancels_itself_counts_as_a_failure(
    stack: PromptStack, provider: Provider
) -> None:
    """Nobody asked for that; handed back untried, the job would go round for ever."""
    provider.on_call = raises(asyncio.CancelledError())
    job = generate(stack)
    assert run(stack, job).state is JobState.QUEUED
    left = stack.jobs.get(job.id)
    assert (left.failures, left.error_code) == (1, "PROVIDER_UNREACHABLE")


def test_invariant_08_an_error_of_any_characters_is_noted_and_tried_again(
    stack: PromptStack, provider: Provider
) -> None:
    """Also where a provider's words, or a header of its answer, can't be stored as they are."""
    provider.on_call = raises(Overloaded("busy (request \x00)", request_id="\x00"))
    job = generate(stack)
    assert run(stack, job).state is JobState.QUEUED
    [attempt] = attempts(stack, job)
    assert (attempt.state, attempt.error_code) == ("failed", "PROVIDER_OVERLOADED")
    assert stack.jobs.get(job.id).error_code == "PROVIDER_OVERLOADED"


def test_invariant_08_waiting_jobs_leave_the_worker_free_and_celery_shows_retry(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    with ForkedSimulator() as simulator:
        limited = {"kind": "status", "status": 429, "retry_after_ms": 300_000}
        simulator.control(limited, limited, limited)
        start_worker(WORKER_CONCURRENCY="1", OPENAI_BASE_URL=simulator.url, OPENAI_API_KEY="test")
        waiting = [stack.jobs.enqueue_generation(f"{n}", provider="openai") for n in range(3)]
        free = stack.jobs.enqueue_generation("x")
        wait_until(lambda: state(stack, free) is JobState.SUCCEEDED, "a job behind the waiting")
        for job in waiting:
            result: AsyncResult[Any] = AsyncResult(str(job.id), app=stack.celery)
            wait_until(lambda result=result: result.state == "RETRY", "Celery's view of it")  # type: ignore[misc]
            # The first was told so; the others then knew it from the limiter.
            assert "RATE_LIMIT" in str(result.result)
            shown = stack.jobs.get(job.id)
            assert (shown.state, shown.attempt, shown.failures) == (JobState.QUEUED, 1, 0)


# 9. A rate limit is not a failed attempt


def test_invariant_09_a_rate_limit_costs_no_retry_and_waits_as_long_as_told(
    stack: PromptStack, provider: Provider
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


def test_invariant_09_other_errors_cost_retries_and_then_the_job_ends(
    stack: PromptStack, provider: Provider
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


# 10. Progress can be rebuilt, and never disagrees with the ledger at rest


def agrees(stack: PromptStack, *jobs: JobView) -> None:
    """What Redis shows is what the ledger says, also after Redis was emptied."""
    for _ in range(2):
        shown = stack.progress.read([job.id for job in jobs])
        with stack.ledger.transaction() as unit:
            rows = [unit.jobs.get(job.id) for job in jobs]
        assert shown == {found.id: Progress.of(found) for found in rows if found}
        stack.redis.flushdb()


def test_invariant_10_progress_at_rest_is_what_the_ledger_says_also_after_a_flush(
    stack: PromptStack, provider: Provider
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


def test_invariant_10_progress_moves_with_the_work(stack: PromptStack, provider: Provider) -> None:
    job = embed(stack, "a", "b", "c", "d", "e")
    seen: list[tuple[JobState, int, int]] = []

    def look() -> None:
        shown = stack.progress.read([job.id])[job.id]
        seen.append((shown.state, shown.current, shown.total))
        if len(seen) == 2:
            stack.redis.flushdb()

    provider.on_call = look
    reported: list[tuple[int, int]] = []
    stack.embedding.run(job.id, lambda shown: reported.append((shown.current, shown.total)))
    assert seen == [(JobState.RUNNING, done, 5) for done in (0, 2, 4)]
    assert reported == [(0, 1), (0, 5), (2, 5), (4, 5), (5, 5)]
    agrees(stack, job)


def test_invariant_10_a_viewer_who_has_seen_the_end_sees_a_second_life_too(
    stack: PromptStack, provider: Provider
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


def test_invariant_10_a_stale_entry_gives_way_to_the_ledger(
    stack: PromptStack, provider: Provider
) -> None:
    job = generate(stack)
    stack.progress.publish(Progress(job.id, JobState.RUNNING, 0, 1))
    with another(stack, redis_url=NO_REDIS) as cut_off:
        cut_off.jobs.cancel(job.id)
    now = [float(str(stack.redis.hget(f"promptstack:progress:{job.id}", "updated_at")))]
    viewer = type(stack.progress)(stack.redis, stack.ledger, ttl_seconds=60, clock=lambda: now[0])
    now[0] += 6
    assert viewer.read([job.id])[job.id].state is JobState.CANCELLED


def test_invariant_10_without_redis_a_job_is_seen_and_done(
    stack: PromptStack, provider: Provider
) -> None:
    with another(stack, redis_url=NO_REDIS, **PASSAGE) as cut_off:
        employ(cut_off, provider)
        jobs = [generate(cut_off), embed(cut_off, "a", "b", "c")]
        for job in jobs:
            assert run(cut_off, job).state is JobState.SUCCEEDED
            shown = cut_off.progress.read([job.id])[job.id]
            assert shown == Progress.of(row(cut_off, job))


# 11. Terminal states are final unless a person asks for a retry


def cancel(stack: PromptStack, job: JobView) -> None:
    stack.jobs.cancel(job.id)


def end(stack: PromptStack, provider: Provider, ending: JobState) -> JobView:
    job = generate(stack)
    if ending is JobState.SUCCEEDED:
        run(stack, job)
    elif ending is JobState.FAILED:
        provider.on_call = raises(InvalidProviderRequest("no"))
        run(stack, job)
    elif ending is JobState.CANCELLED:
        stack.jobs.cancel(job.id)
    else:
        sql(stack, "UPDATE jobs SET expires_at = now() WHERE id = :id", id=job.id)
        stack.reconciler.run_once()
    assert state(stack, job) is ending
    return job


def test_invariant_11_what_has_ended_stays_as_it_is(
    stack: PromptStack, provider: Provider, subtests: pytest.Subtests
) -> None:
    reconciler = reconciler_of(stack, Clock())
    for ending in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED):
        job = end(stack, provider, ending)
        before, calls = columns(stack, job), provider.calls
        assert before["finished_at"] is not None
        current = Claim(
            job.id, before["attempt"], stack.worker_id, None, "fake", "f-1", {}, 0, 3, False, 60.0
        )
        with subtests.test(str(ending)):
            with pytest.raises(WrongState, match=str(ending)):
                stack.jobs.cancel(job.id)
            for store in STALE.values():
                with pytest.raises(ClaimLost), stack.ledger.transaction() as unit:
                    store(unit.jobs, current)
            with stack.ledger.transaction() as unit:
                assert not unit.jobs.release(job.id, current.attempt)
                unit.rings.mark_rung([(job.id, current.attempt)], "another epoch")
            sql(stack, "UPDATE workers SET heartbeat_at = now() - interval '1 h'")
            stack.redis.flushdb()
            reconciler.run_once()
            stack.heartbeat.beat()
            assert claim(stack, job) is None
            assert run(stack, job).state is ending
            assert columns(stack, job) == before
            assert provider.calls == calls
            assert queued_messages(stack) == 0


def test_invariant_11_a_person_can_retry_all_but_a_success(
    stack: PromptStack, provider: Provider
) -> None:
    done = end(stack, provider, JobState.SUCCEEDED)
    with pytest.raises(WrongState, match="succeeded"):
        stack.jobs.retry(done.id)
    for ending in (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED):
        job = end(stack, provider, ending)
        stack.redis.delete("generation")
        opened = stack.jobs.retry(job.id)
        assert (opened.state, opened.failures, opened.error) == (JobState.QUEUED, 0, None)
        assert opened.finished_at is None
        assert queued_messages(stack) == 1
        with pytest.raises(WrongState, match="queued"):
            stack.jobs.retry(job.id)
        assert run(stack, job).state is JobState.SUCCEEDED


def test_invariant_11_a_cancel_closes_the_call_and_keeps_what_was_produced(
    stack: PromptStack, provider: Provider
) -> None:
    job = embed(stack, "a", "b", "c", "d")
    with ThreadPoolExecutor(1) as pool, Gate(stack) as gate:
        provider.on_call = lambda: gate() if provider.calls == 2 else None
        outcome = pool.submit(run, stack, job)
        gate.wait()
        stack.jobs.cancel(job.id)
        stack.heartbeat.beat()
        assert outcome.result(30).state is JobState.CANCELLED
    ended = stack.jobs.get(job.id)
    assert (ended.state, ended.current, ended.total) == (JobState.CANCELLED, 2, 4)
    assert [attempt.state for attempt in attempts(stack, job)] == ["succeeded", "cancelled"]
    agrees(stack, job)
    stack.jobs.retry(job.id)
    assert run(stack, job).state is JobState.SUCCEEDED
    assert first_words(provider.embedded) == ["a", "b", "c", "d", "c", "d"]


def test_invariant_11_a_cancel_before_the_request_leaves_keeps_it_from_leaving(
    stack: PromptStack, provider: Provider
) -> None:
    generation, embedding = generate(stack), embed(stack, "a", "b", "c")

    def cancel_at(current: int, job: JobView) -> Callable[[Progress], None]:
        def report(shown: Progress) -> None:
            if (shown.current, shown.total) == (current, 3 if current else 1):
                cancel(stack, job)

        return report

    outcome = stack.generation.run(generation.id, cancel_at(0, generation))
    assert (outcome.state, provider.calls) == (JobState.CANCELLED, 0)
    outcome = stack.embedding.run(embedding.id, cancel_at(2, embedding))
    assert (outcome.state, provider.calls) == (JobState.CANCELLED, 1)
    assert [attempt.state for attempt in attempts(stack, embedding)] == ["succeeded"]


def test_invariant_11_a_retry_is_taken_up_while_the_cancelled_call_still_closes(
    stack: PromptStack, provider: Provider
) -> None:
    job = generate(stack)
    with ThreadPoolExecutor(1) as pool, Gate(stack) as gate:
        provider.on_call = lambda: gate() if provider.calls == 1 else None
        first = pool.submit(run, stack, job)
        gate.wait()
        stack.jobs.cancel(job.id)
        stack.jobs.retry(job.id)
        # Its message may come to this very worker, which has the first attempt in hand.
        assert run(stack, job).state is JobState.SUCCEEDED
        stack.heartbeat.beat()
        assert first.result(30).state is JobState.SUCCEEDED
    assert [attempt.state for attempt in attempts(stack, job)] == ["cancelled", "succeeded"]


def test_invariant_11_an_answer_that_comes_after_a_cancel_does_not_undo_it(
    stack: PromptStack, provider: Provider
) -> None:
    generation = generate(stack)
    provider.on_call = lambda: cancel(stack, generation)
    assert run(stack, generation).state is JobState.CANCELLED
    # It is paid for, and kept: a retry does not pay again.
    kept = stack.jobs.get(generation.id).result
    assert kept is not None
    assert stack.jobs.retry(generation.id).state is JobState.SUCCEEDED
    assert stack.jobs.get(generation.id).result == kept
    assert run(stack, generation).state is JobState.SUCCEEDED
    assert provider.calls == 1
    provider.prompts.clear()
    embedding = embed(stack, "a", "b", "c")
    provider.on_call = lambda: cancel(stack, embedding)
    assert run(stack, embedding).state is JobState.CANCELLED
    # Its vectors are paid for, and kept.
    stack.jobs.retry(embedding.id)
    provider.on_call = lambda: None
    assert run(stack, embedding).state is JobState.SUCCEEDED
    assert first_words(provider.embedded) == ["a", "b", "c"]


def test_invariant_11_a_deadline_ends_a_waiting_and_a_running_job(
    stack: PromptStack, provider: Provider
) -> None:
    provider.on_call = raises(RateLimited("slow down", retry_after=600.0))
    waiting, running = generate(stack), generate(stack)
    run(stack, waiting)
    with ThreadPoolExecutor(1) as pool, Gate(stack) as gate:
        provider.on_call = gate
        outcome = pool.submit(run, stack, running)
        gate.wait()
        sql(stack, "UPDATE jobs SET expires_at = now()")
        stack.reconciler.run_once()
        stack.heartbeat.beat()
        assert outcome.result(30).state is JobState.EXPIRED
    for job in (waiting, running):
        ended = stack.jobs.get(job.id)
        assert (ended.state, ended.error_code) == (JobState.EXPIRED, "EXPIRED")
        # It waits for nothing any more.
        assert ended.not_before is None
        assert stack.progress.read([job.id])[job.id].retry_at == 0
    agrees(stack, waiting, running)


def test_invariant_11_a_job_whose_user_is_deleted_in_mid_call_ends_quietly(
    stack: PromptStack, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    with stack.ledger.transaction() as unit:
        user_id = unit.users.create(email="ada@example.org").id
    jobs = [generate(stack, user_id=user_id), embed(stack, "a", "b", "c", user_id=user_id)]
    provider.on_call = lambda: sql(stack, "DELETE FROM users")
    for job in jobs:
        assert run(stack, job).state is None
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [attempts(stack, job) for job in jobs] == [[], []]
