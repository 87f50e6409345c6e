"""One guard a promise: each fails when the line that keeps it is taken away."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar
from uuid import UUID, uuid4

import numpy as np
import pytest
from redis import Redis
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from promptstack.config.settings import load_settings
from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.models import Document, Job, JobState
from promptstack.services.errors import InvalidInput, WrongState
from promptstack.services.llm.base import (
    Capability,
    EmbeddingLimits,
    EmbeddingResponse,
    LLMResponse,
    LLMService,
)
from promptstack.services.llm.errors import Overloaded, RateLimited
from promptstack.services.llm.requests import GenerationRequest
from promptstack.tasks.composition import PromptStack
from tests.processes import Process, wait_until

MARKER = "xyzzy-marker-word"


class FakeService(LLMService):
    """A provider that does what a test tells it, and counts."""

    name = "fake"
    default_models: ClassVar = {Capability.GENERATION: "f", Capability.EMBEDDING: "f"}
    embedding_limits = EmbeddingLimits(items=2, bytes=10_000)
    before_answer: ClassVar[Callable[[], None]] = staticmethod(lambda: None)
    embedded: ClassVar[list[str]] = []

    async def _generate(
        self, request: GenerationRequest, user_id: UUID | None, failures: int
    ) -> LLMResponse:
        type(self).before_answer()
        return LLMResponse("answer", "f", 1, 1, "stop")

    async def _embed(
        self, texts: Sequence[str], model: str, user_id: UUID | None
    ) -> EmbeddingResponse:
        type(self).before_answer()
        self.embedded.extend(texts)
        return EmbeddingResponse(np.ones((len(texts), 3), np.float32), model, len(texts))

    def estimate_tokens(self, text: str) -> int:
        return len(text)

    async def is_available(self) -> bool:
        return True


@pytest.fixture
def fake(stack: PromptStack, monkeypatch: pytest.MonkeyPatch) -> type[FakeService]:
    monkeypatch.setattr(FakeService, "embedded", [])
    monkeypatch.setattr(FakeService, "before_answer", staticmethod(lambda: None))
    stack.factory.register("fake", FakeService)
    stack.heartbeat.beat()
    return FakeService


def sets(fake: type[FakeService], action: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fake, "before_answer", staticmethod(action))


def count_rows(stack: PromptStack) -> tuple[int, int]:
    with stack.ledger.transaction() as unit:
        jobs = unit.session.scalar(select(func.count()).select_from(Job))
        documents = unit.session.scalar(select(func.count()).select_from(Document))
        return jobs or 0, documents or 0


def run_generation(stack: PromptStack, job_id: UUID) -> None:
    stack.generation.run(job_id, lambda progress: None)


def run_embedding(stack: PromptStack, job_id: UUID) -> None:
    stack.embedding.run(job_id, lambda progress: None)


def test_accepted_means_committed_also_without_a_broker(environment: dict[str, str]) -> None:
    settings = load_settings(_env_file=None, redis_url="unix:///nowhere/at/all.sock")
    with PromptStack.open(settings) as caller:
        job = caller.jobs.enqueue_generation("x")
        with caller.ledger.transaction() as unit:
            row = unit.jobs.get(job.id)
            assert row is not None
            assert row.rung_at is None


def test_a_job_in_the_callers_transaction_lives_and_dies_with_it(stack: PromptStack) -> None:
    with Session(stack.ledger.engine) as session:
        stack.jobs.enqueue_generation("rolled back", session=session)
        session.rollback()
        assert stack.redis.llen("generation") == 0
        with session.begin_nested():
            kept = stack.jobs.enqueue_generation("kept", session=session)
        assert stack.redis.llen("generation") == 0  # a savepoint is no commit
        session.commit()
    assert count_rows(stack) == (1, 0)
    assert stack.redis.llen("generation") == 1
    assert stack.jobs.get(kept.id).state is JobState.QUEUED


def test_enqueue_needs_one_connection_at_a_time(environment: dict[str, str]) -> None:
    settings = load_settings(_env_file=None, database_pool_size=1, database_max_overflow=0)
    with PromptStack.open(settings) as caller:
        job = caller.jobs.enqueue_generation("x")
        with caller.ledger.transaction() as unit:
            row = unit.jobs.get(job.id)
            assert row is not None
            assert row.rung_at is not None
        with Session(caller.ledger.engine) as session:
            caller.jobs.enqueue_generation("y", session=session)
            session.commit()
        assert caller.redis.llen("generation") == 2


def test_messages_results_and_logs_hold_no_content(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    generation = stack.jobs.enqueue_generation(MARKER, options={"fail_times": 1})
    embedding = stack.jobs.enqueue_embedding(f"{MARKER} text", source="a")
    assert MARKER.encode() not in dump(stack.redis_url)
    worker = start_worker()
    for job in (generation, embedding):
        wait_until(lambda job=job: stack.jobs.get(job.id).state.is_final, "its end")  # type: ignore[misc]
    result = stack.jobs.get(generation.id).result
    assert result is not None
    assert MARKER in result["text"]
    assert MARKER.encode() not in dump(stack.redis_url)
    assert MARKER not in worker.output()


def dump(redis_url: str) -> bytes:
    with Redis.from_url(redis_url) as redis:
        return b"".join(redis.dump(key) or b"" for key in redis.scan_iter())


def test_losing_every_message_loses_no_job(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    jobs = [stack.jobs.enqueue_generation(f"job {n}") for n in range(20)]
    stack.redis.flushdb()
    start_worker()
    wait_until(
        lambda: all(stack.jobs.get(job.id).state is JobState.SUCCEEDED for job in jobs), "all jobs"
    )


def test_a_flushed_broker_is_told_from_a_slow_one(stack: PromptStack) -> None:
    jobs = {stack.jobs.enqueue_generation(f"job {n}").id for n in range(3)}

    def unpublished() -> set[UUID]:
        epoch = stack.publisher.epoch()
        with stack.ledger.transaction() as unit:
            found = unit.rings.take_unrung(epoch, idle_queues=[], patience=0.0, limit=100)
            return {job.id for job in found}

    assert unpublished() == set()  # a backlog that waits is left alone
    stack.redis.flushdb()
    assert unpublished() == jobs
    assert unpublished() == set()


def test_a_claim_is_fenced(stack: PromptStack) -> None:
    job = stack.jobs.enqueue_generation("x")
    first, second = uuid4(), uuid4()

    def take(worker: UUID) -> object:
        with stack.ledger.transaction() as unit:
            return unit.jobs.claim(job.id, worker)

    with ThreadPoolExecutor(2) as pool:
        claims = list(pool.map(take, (first, second)))
    assert sorted(claim is None for claim in claims) == [False, True]
    stale = next(claim for claim in claims if claim is not None)
    with stack.ledger.transaction() as unit:
        unit.upkeep.free_lost(0.0)
        fresh = unit.jobs.claim(job.id, second)
        assert fresh is not None
    with pytest.raises(ClaimLost), stack.ledger.transaction() as unit:
        unit.jobs.succeed(stale, {"text": "of the stale attempt"})  # type: ignore[arg-type]
    with stack.ledger.transaction() as unit:
        unit.jobs.succeed(fresh, {"text": "right"})
    assert stack.jobs.get(job.id).result == {"text": "right"}


def test_silence_frees_a_job_and_age_does_not(stack: PromptStack) -> None:
    job = stack.jobs.enqueue_generation("x")
    stack.heartbeat.beat()
    with stack.ledger.transaction() as unit:
        assert unit.jobs.claim(job.id, stack.worker_id)
        unit.session.execute(update(Job).values(started_at=text("now() - interval '1 day'")))
        assert not unit.upkeep.free_lost(60.0)
        unit.session.execute(text("UPDATE workers SET heartbeat_at = now() - interval '61 s'"))
        assert [freed.id for freed in unit.upkeep.free_lost(60.0)] == [job.id]


def test_no_transaction_is_open_while_the_provider_is_asked(
    stack: PromptStack, fake: type[FakeService], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_ones: list[int] = []
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        " AND datname = current_database()"
    )

    def look() -> None:
        with stack.ledger.transaction() as unit:
            open_ones.append(unit.session.scalar(query) or 0)

    sets(fake, look, monkeypatch)
    run_generation(stack, stack.jobs.enqueue_generation("x", provider="fake").id)
    run_embedding(stack, stack.jobs.enqueue_embedding("x", source="a", provider="fake").id)
    assert open_ones == [0, 0]


def test_the_attempt_stands_before_the_call_and_stored_vectors_are_not_asked_for_again(
    stack: PromptStack, fake: type[FakeService], monkeypatch: pytest.MonkeyPatch
) -> None:
    paragraphs = [f"Paragraph {n}. " + "word " * 400 for n in range(6)]
    job = stack.jobs.enqueue_embedding("\n\n".join(paragraphs), source="a", provider="fake")
    seen: list[int] = []

    def fail_on_third_call() -> None:
        with stack.ledger.transaction() as unit:
            started = unit.attempts.get_many(job_id=job.id, state="started")
            seen.append(len(started))
        if len(seen) == 3:
            raise Overloaded("busy")

    sets(fake, fail_on_third_call, monkeypatch)
    run_embedding(stack, job.id)
    assert stack.jobs.get(job.id).state is JobState.QUEUED
    wait_until(lambda: is_due(stack, job.id), "the time of the retry")
    run_embedding(stack, job.id)
    assert stack.jobs.get(job.id).state is JobState.SUCCEEDED
    assert seen == [1, 1, 1, 1]
    assert len(fake.embedded) == len(set(fake.embedded)) == 6


def is_due(stack: PromptStack, job_id: UUID) -> bool:
    with stack.ledger.transaction() as unit:
        standing = unit.jobs.standing(job_id)
    assert standing is not None
    return (standing.seconds_until_due or 0.0) <= 0.0


def test_a_rate_limit_costs_no_retry_and_waits_as_told(
    stack: PromptStack, fake: type[FakeService], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise RateLimited("slow down", retry_after=60.0)

    sets(fake, refuse, monkeypatch)
    job = stack.jobs.enqueue_generation("x", provider="fake", max_retries=0)
    threads = threading.active_count()
    run_generation(stack, job.id)
    waiting = stack.jobs.get(job.id)
    assert (waiting.state, waiting.failures) == (JobState.QUEUED, 0)
    with stack.ledger.transaction() as unit:
        standing = unit.jobs.standing(job.id)
    assert standing is not None
    assert (standing.seconds_until_due or 0.0) > 55.0
    assert threading.active_count() <= threads + 1  # waiting holds nothing here


def test_retries_are_bounded(
    stack: PromptStack, fake: type[FakeService], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise Overloaded("busy")

    sets(fake, fail, monkeypatch)
    job = stack.jobs.enqueue_generation("x", provider="fake", max_retries=2)
    while not stack.jobs.get(job.id).state.is_final:
        wait_until(lambda: is_due(stack, job.id), "the next try")
        run_generation(stack, job.id)
    ended = stack.jobs.get(job.id)
    assert (ended.state, ended.attempt, ended.failures) == (JobState.FAILED, 3, 3)


def test_progress_can_be_rebuilt_and_agrees_at_rest(
    stack: PromptStack, fake: type[FakeService]
) -> None:
    job = stack.jobs.enqueue_embedding("some text", source="a", provider="fake")
    run_embedding(stack, job.id)
    shown = stack.progress.read([job.id])
    stack.redis.flushdb()
    assert stack.progress.read([job.id]) == shown
    row = stack.jobs.get(job.id)
    assert (shown[job.id].state, shown[job.id].current) == (row.state, row.current)


def test_redis_being_away_costs_the_view_and_not_the_job(environment: dict[str, str]) -> None:
    settings = load_settings(_env_file=None, redis_url="unix:///nowhere/at/all.sock")
    with PromptStack.open(settings) as alone:
        alone.heartbeat.beat()
        job = alone.jobs.enqueue_generation("x")
        run_generation(alone, job.id)
        assert alone.jobs.get(job.id).state is JobState.SUCCEEDED
        assert alone.progress.read([job.id])[job.id].state is JobState.SUCCEEDED


def test_terminal_states_are_final_unless_a_person_asks(
    stack: PromptStack, fake: type[FakeService]
) -> None:
    job = stack.jobs.enqueue_generation("x", provider="fake")
    stack.jobs.cancel(job.id)
    run_generation(stack, job.id)  # its message comes late
    assert stack.jobs.get(job.id).state is JobState.CANCELLED
    stack.jobs.retry(job.id)
    run_generation(stack, job.id)
    assert stack.jobs.get(job.id).state is JobState.SUCCEEDED
    run_generation(stack, job.id)
    ended = stack.jobs.get(job.id)
    assert ended.attempt == 1
    # A success is final for everybody.
    for ask in (stack.jobs.retry, stack.jobs.cancel):
        with pytest.raises(WrongState):
            ask(job.id)
    assert stack.jobs.retry_many(state=None) == 0
    assert stack.jobs.get(job.id) == ended


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("", {}),
        ("  ", {}),
        ("a\x00b", {}),
        ("a\ud800b", {}),
        ("x" * 10_000_001, {}),
        ("x", {"provider": "nope"}),
        ("x", {"model": "nope"}),
        ("x", {"temperature": 3.0}),
        ("x", {"options": {"nope": 1}}),
        ("x", {"options": {"delay_seconds": float("nan")}}),
        ("x", {"max_retries": -1}),
        ("x", {"expires_in": 0.0}),
        ("x", {"idempotency_key": "k" * 201}),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(
    stack: PromptStack, prompt: str, options: dict[str, object]
) -> None:
    with pytest.raises(InvalidInput) as raised:
        stack.jobs.enqueue_generation(prompt, **options)  # type: ignore[arg-type]
    assert len(str(raised.value)) < 400
    with pytest.raises(InvalidInput):
        stack.jobs.enqueue_embedding("" if prompt == "x" else prompt, source="a", provider="local")
    assert count_rows(stack) == (0, 0)
