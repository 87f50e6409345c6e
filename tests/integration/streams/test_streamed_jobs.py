"""A job that asks for a stream shows its text as it is produced, and its answer is the same."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from uuid import UUID

import pytest
from fastapi.testclient import TestClient

from promptstack.config.names import TEXT_KEY
from promptstack.repositories.models import AttemptState, Billing, JobState
from promptstack.services.errors import InvalidInput, NoAnswer
from promptstack.services.jobs.views import JobView
from promptstack.services.llm.answers import LLMResponse
from promptstack.services.llm.errors import ConnectionFailed, Overloaded, ProviderError
from promptstack.services.llm.listening import Listener
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.streams.pieces import Position
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, employ
from tests.jobs import NO_REDIS, another, embed, run
from tests.processes import wait_until

TEXT = "one two three four"


class Streaming(FakeProvider):
    """Says a text word by word. `say` yields the words, and may raise or block."""

    def __init__(self) -> None:
        super().__init__()
        self.pace = 0.0
        self.say: Callable[[int], Iterator[str]] = lambda call: iter(
            word + " " for word in TEXT.split()
        )
        provider = self

        async def stream(
            service: object,
            request: GenerationRequest,
            user_id: UUID | None,
            failures: int,
            listener: Listener,
        ) -> LLMResponse:
            provider.prompts.append(request.text())
            said = ""
            for word in provider.say(len(provider.prompts)):
                await asyncio.sleep(provider.pace)
                listener.hear(word)
                said += word
            return LLMResponse(said, request.model, 5, 4, "stop")

        self.service = type("Streaming", (self.service,), {"_stream": stream})


@pytest.fixture
def provider(stack: WorkerServices) -> Streaming:
    provider = Streaming()
    employ(stack, provider)
    return provider


def words_then(text: str, *errors: ProviderError) -> Callable[[int], Iterator[str]]:
    """Say the text; on the first calls, fail after the first half of it."""
    words = [word + " " for word in text.split()]

    def say(call: int) -> Iterator[str]:
        if call <= len(errors):
            yield from words[:2]
            raise errors[call - 1]
        yield from words

    return say


def read(stack: WorkerServices, job_id: UUID) -> tuple[str, int]:
    """The text that a reader gets, and how often it began again."""
    text, restarts = "", 0
    for piece in stack.jobs.stream(job_id, timeout=60):
        if piece.kind == "restart":
            text, restarts = "", restarts + 1
        text += piece.text
    return text, restarts


def test_the_demo_provider_speaks_word_by_word(stack: WorkerServices) -> None:
    stack.heartbeat.beat()
    job = stack.jobs.enqueue_generation(
        "Say hello.", provider="demo", options={"delay_seconds": 0.2}, stream=True
    )
    heard: list[str] = []
    reader = threading.Thread(
        target=lambda: heard.extend(piece.text for piece in stack.jobs.stream(job, timeout=60))
    )
    reader.start()
    run(stack, job)
    reader.join(60)
    result = stack.jobs.get(job.id).result
    assert result is not None
    assert "".join(heard) == result["text"]
    assert len(heard) > 1


def test_only_a_job_that_asks_for_it_has_its_text_in_redis(
    stack: WorkerServices, provider: Streaming
) -> None:
    jobs = [
        stack.jobs.enqueue_generation("Hi.", provider="fake", stream=stream)
        for stream in (False, True)
    ]
    for job in jobs:
        run(stack, job)
    stack.loop.run(stack.text_writer.flush())
    keys = [TEXT_KEY.format(id=job.id) for job in jobs]
    assert [stack.redis.exists(key) for key in keys] == [0, 1]
    assert 0 < int(str(stack.redis.ttl(keys[1]))) <= stack.settings.stream_ttl_seconds
    for key in stack.redis.scan_iter():
        held = stack.redis.dump(key) if key not in keys else b""
        assert b"three" not in bytes(str(held), "utf-8", "replace")
    for job in jobs:  # one that did not ask for it has one piece, at its end
        text, restarts = read(stack, job.id)
        assert (text.split(), restarts) == (
            [*TEXT.split()] if job is jobs[1] else ["You", "said:", "Hi."],
            0,
        )


def test_a_retry_begins_the_text_again(stack: WorkerServices, provider: Streaming) -> None:
    provider.say = words_then(TEXT, ConnectionFailed("The connection broke."))
    job = stack.jobs.enqueue_generation("Hi.", provider="fake", stream=True)
    assert run(stack, job).state is JobState.QUEUED
    stack.loop.run(stack.text_writer.flush())
    pieces = stack.text_streams.read({job.id: "0"})[job.id]
    assert "".join(piece.text for piece in pieces) == "one two "
    wait_until(lambda: run(stack, job).state is JobState.SUCCEEDED, "the job is due again")
    stack.loop.run(stack.text_writer.flush())
    later = stack.text_streams.read({job.id: pieces[-1].position})[job.id]
    restart, *texts, end = later  # a busy machine may write the text in several pieces
    assert (restart.kind, restart.attempt, end.kind) == ("restart", 2, "end")
    assert {piece.kind for piece in texts} == {"text"}
    assert "".join(piece.text for piece in texts).split() == TEXT.split()


def test_another_provider_begins_the_text_again(stack: WorkerServices, provider: Streaming) -> None:
    provider.say = words_then(TEXT, Overloaded("It is overloaded."))
    job = stack.jobs.enqueue_generation(
        "Hi.", provider="fake", fallbacks=[{"provider": "demo"}], stream=True
    )
    run(stack, job)
    stack.loop.run(stack.text_writer.flush())
    after_first_text = str(Position.of(1, 0, len("one two ")))
    pieces = stack.text_streams.read({job.id: after_first_text})[job.id]
    assert [pieces[0].kind, pieces[-1].kind] == ["restart", "end"]
    assert pieces[0].reason == "demo/demo-1 is asked"
    result = stack.jobs.get(job.id).result
    assert result is not None
    assert read(stack, job.id)[0] == result["text"]


def test_a_failure_before_any_text_is_no_restart(
    stack: WorkerServices, provider: Streaming
) -> None:
    provider.say = words_then("", Overloaded("It is overloaded."))
    job = stack.jobs.enqueue_generation(
        "Hi.", provider="fake", fallbacks=[{"provider": "demo"}], stream=True
    )
    run(stack, job)
    text, restarts = read(stack, job.id)
    assert (text[:15], restarts) == ("[demonstration,", 0)


def test_without_redis_the_job_goes_on_and_its_text_comes_from_the_ledger(
    stack: WorkerServices, provider: Streaming
) -> None:
    job = stack.jobs.enqueue_generation("Hi.", provider="fake", stream=True)
    with another(stack, redis_url=NO_REDIS) as cut_off:
        employ(cut_off, provider)
        assert run(cut_off, job).state is JobState.SUCCEEDED
        assert read(cut_off, job.id)[0].split() == TEXT.split()
    assert read(stack, job.id)[0].split() == TEXT.split()


@pytest.mark.parametrize("error", [ConnectionFailed, Overloaded], ids=["broken", "overloaded"])
def test_what_came_before_a_cut_is_billed_as_an_estimate(
    stack: WorkerServices, provider: Streaming, error: type[ProviderError]
) -> None:
    provider.say = words_then(TEXT, error("It ended in the middle."))
    job = stack.jobs.enqueue_generation("Hello you.", provider="fake", stream=True, max_retries=0)
    assert run(stack, job).state is JobState.FAILED
    [attempt] = stack.jobs.get_attempts(job.id)
    assert (attempt.state, attempt.billing) == (AttemptState.FAILED, Billing.BILLED)
    assert (attempt.input_tokens, attempt.output_tokens) == (len("Hello you."), 2)
    assert attempt.note == "the answer was cut off; its tokens are an estimate"
    with pytest.raises(NoAnswer, match="failed"):
        read(stack, job.id)


def test_a_stream_may_take_longer_than_a_call_as_long_as_its_pieces_come(
    stack: WorkerServices, provider: Streaming
) -> None:
    with another(stack, provider_timeout_seconds=1.0) as hasty:
        employ(hasty, provider)
        provider.pace, provider.say = 0.2, lambda call: iter(["word "] * 8)
        job = stack.jobs.enqueue_generation("Hi.", provider="fake", stream=True)
        assert run(hasty, job).state is JobState.SUCCEEDED
        provider.pace = 1.5
        job = stack.jobs.enqueue_generation("Hi.", provider="fake", stream=True, max_retries=0)
        assert run(hasty, job).state is JobState.FAILED
    assert stack.jobs.get(job.id).error_code == "PROVIDER_TIMEOUT"


def test_a_stream_ends_at_the_deadline_of_its_job(
    stack: WorkerServices, provider: Streaming
) -> None:
    provider.pace, provider.say = 0.05, lambda call: iter(["word "] * 10_000)
    job = stack.jobs.enqueue_generation("Hi.", provider="fake", stream=True, expires_in=1.0)
    assert run(stack, job).state is JobState.EXPIRED
    [attempt] = stack.jobs.get_attempts(job.id)
    assert attempt.billing is Billing.BILLED


def test_what_failed_before_any_text_is_not_billed(
    stack: WorkerServices, provider: Streaming
) -> None:
    def say(call: int) -> Iterator[str]:
        raise Overloaded("It is overloaded.")

    provider.say = say
    job = stack.jobs.enqueue_generation("Hi.", provider="fake", stream=True, max_retries=0)
    run(stack, job)
    [attempt] = stack.jobs.get_attempts(job.id)
    assert (attempt.billing, attempt.cost_usd) == (Billing.NOT_BILLED, Decimal(0))


def test_a_call_that_is_closed_in_its_answer_is_billed_as_an_estimate(
    stack: WorkerServices, provider: Streaming
) -> None:
    def say(call: int) -> Iterator[str]:
        yield "one two "
        stack.executor.hand_back_all()
        while True:
            yield ""

    provider.say = say
    job = stack.jobs.enqueue_generation("Hi.", provider="fake", stream=True)
    run(stack, job)
    [attempt] = stack.jobs.get_attempts(job.id)
    assert (attempt.state, attempt.billing) == (AttemptState.CANCELLED, Billing.BILLED)
    assert attempt.output_tokens == 2
    assert attempt.note


def test_a_character_in_two_halves_and_one_that_cannot_be_stored_are_shown_as_stored(
    stack: WorkerServices, provider: Streaming
) -> None:
    provider.say = lambda call: iter(["a\ud83d", "\ude00b", "\x00", "c"])
    job = stack.jobs.enqueue_generation("Hi.", provider="fake", stream=True)
    shown: list[str] = []
    listener = Listener(shown.append)
    for piece in provider.say(1):
        listener.hear(piece)
    assert "".join(shown) == "a\U0001f600b\ufffdc"
    run(stack, job)
    assert read(stack, job.id)[0] == (stack.jobs.get(job.id).result or {})["text"]


def test_a_stream_is_asked_for_over_http(
    auth_client: TestClient, stack: WorkerServices, provider: Streaming
) -> None:
    body = {"prompt": "Hi.", "provider": "fake", "stream": True}
    made = auth_client.post("/api/v1/generations", json=body)
    assert made.status_code == 202
    run(stack, stack.jobs.get(made.json()["id"]))
    assert read(stack, made.json()["id"])[0].split() == TEXT.split()
    refused = auth_client.post("/api/v1/generations", json={**body, "stream": "yes"})
    assert refused.status_code == 422


def test_a_stream_may_be_longer_than_what_anthropic_answers_at_once(stack: WorkerServices) -> None:
    def enqueue(*, stream: bool) -> JobView:
        return stack.jobs.enqueue_generation(
            "Hi.", provider="anthropic", max_tokens=60_000, stream=stream
        )

    assert enqueue(stream=True).state is JobState.QUEUED
    with pytest.raises(InvalidInput, match="ask for stream"):
        enqueue(stream=False)


def test_a_document_has_no_text_to_stream(stack: WorkerServices, provider: Streaming) -> None:
    with pytest.raises(InvalidInput, match="no text"):
        next(stack.jobs.stream(embed(stack, "passage")))


def test_a_reader_gives_up_in_time(stack: WorkerServices, provider: Streaming) -> None:
    job = stack.jobs.enqueue_generation("Hi.", provider="fake", stream=True)
    with pytest.raises(TimeoutError, match="it goes on"):
        list(stack.jobs.stream(job, timeout=0.1))
