"""Chat completions: OpenAI's own client gets what it would get from OpenAI, from any provider."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from promptstack.config.names import Queue
from promptstack.repositories.models import JobState
from promptstack.services.errors import KeyBudgetReached
from promptstack.services.jobs.views import JobView
from promptstack.services.llm.errors import (
    ContextTooLong,
    InvalidProviderRequest,
    Overloaded,
    QuotaExhausted,
)
from promptstack.tasks.worker_services import WorkerServices
from tests.direct import openai_client, working
from tests.fakes import FakeProvider, employ, raises
from tests.http import live_server
from tests.integration.streams.test_streamed_jobs import Streaming, words_then
from tests.jobs import another, row, state
from tests.processes import wait_until

MODEL = "fake/fake-1"
JOB_ID = "x-promptstack-job-id"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello."}]


@pytest.fixture
def sdk(stack: WorkerServices) -> Iterator[openai.OpenAI]:
    with openai_client(stack) as client:
        yield client


@pytest.fixture
def worked(stack: WorkerServices) -> Iterator[WorkerServices]:
    with working(stack):
        yield stack


def texts(chunks: Any) -> list[str]:
    return [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]


def test_an_answer_is_a_completion(
    sdk: openai.OpenAI, worked: WorkerServices, fake_llm: FakeProvider
) -> None:
    raw = sdk.chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, temperature=0.5, max_completion_tokens=9
    )
    made = ChatCompletion.model_validate_json(raw.content, strict=True)
    [job] = worked.jobs.get_many()
    assert made.choices[0].message.content == "You said: Hello."
    assert (made.id, made.model) == (f"chatcmpl-{job.id.hex}", "fake-1")
    assert raw.headers[JOB_ID] == str(job.id)
    assert (job.provider, job.model, job.state) == ("fake", "fake-1", JobState.SUCCEEDED)


def test_a_stream_is_the_answer_piece_by_piece(sdk: openai.OpenAI, worked: WorkerServices) -> None:
    provider = Streaming()
    provider.pace = 0.05
    employ(worked, provider)
    stream = sdk.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(texts(chunks)) == "one two three four "
    assert len([one for one in texts(chunks) if one]) > 1
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 9
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert {chunk.id for chunk in chunks} == {f"chatcmpl-{worked.jobs.get_many()[0].id.hex}"}


def test_fields_that_are_not_ours_reach_the_provider(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    """To OpenAI's wire all of them go; another provider goes without mere hints."""
    with openai_client(stack) as sdk, working(stack):
        sdk.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            user="customer-7",
            safety_identifier="7",
            metadata={"order": "12"},
            service_tier="auto",
        )
        [job] = stack.jobs.get_many()
        assert job.tags == ["user=customer-7", "order=12"]
        with pytest.raises(openai.BadRequestError) as caught:
            sdk.chat.completions.create(model=MODEL, messages=HELLO, top_p=0.5)
        assert caught.value.param == "top_p"


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "ash", "format": "mp3"}}, "audio"),
        ({"service_tier": "cheap"}, "service_tier"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a"),
        ({"metadata": {str(number): "b" for number in range(17)}}, "metadata"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "someone", "content": "Hello."}]}, "messages[0].role"),
        ({"temperature": 3}, "temperature"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_can_not_be_done_is_refused_by_its_name(
    sdk: openai.OpenAI, fake_llm: FakeProvider, asked: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(**{"model": MODEL, "messages": HELLO, **asked})
    assert (caught.value.param or "").startswith(param)
    assert caught.value.type == "invalid_request_error"


def test_an_unknown_model_is_not_found(sdk: openai.OpenAI, fake_llm: FakeProvider) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.chat.completions.create(model="demo/other", messages=HELLO)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("error", "raised", "code"),
    [
        (
            InvalidProviderRequest("It is wrong.", detail="No such tool."),
            openai.BadRequestError,
            "invalid_request",
        ),
        (ContextTooLong("It is too long."), openai.BadRequestError, "context_length_exceeded"),
        (QuotaExhausted("All is spent."), openai.RateLimitError, "insufficient_quota"),
        (KeyBudgetReached("The key's day is spent."), openai.RateLimitError, "insufficient_quota"),
        (Overloaded("It is busy.", status=503), openai.InternalServerError, "provider_overloaded"),
    ],
    ids=["invalid", "too long", "quota", "budget", "overloaded"],
)
def test_why_a_job_fails_is_an_error_of_the_same_kind(
    stack: WorkerServices,
    fake_llm: FakeProvider,
    error: Exception,
    raised: type[openai.APIStatusError],
    code: str,
) -> None:
    fake_llm.on_call = raises(*[error] * 9)
    with openai_client(stack) as sdk, working(stack), pytest.raises(raised) as caught:
        sdk.chat.completions.create(model=MODEL, messages=HELLO)
    assert caught.value.code == code
    assert str(error) in caught.value.message
    assert (getattr(error, "detail", None) or "") in caught.value.message
    headers, is_for_now = caught.value.response.headers, code == "provider_overloaded"
    assert headers.get("x-should-retry") == (None if is_for_now else "false")
    assert headers.get("retry-after") == ("5" if is_for_now else None)
    assert caught.value.response.headers[JOB_ID] == str(stack.jobs.get_many()[0].id)


def test_a_failure_before_the_text_has_its_status_in_a_stream_too(
    sdk: openai.OpenAI, worked: WorkerServices, fake_llm: FakeProvider
) -> None:
    fake_llm.on_call = raises(InvalidProviderRequest("It is wrong."))
    with pytest.raises(openai.BadRequestError, match="It is wrong"):
        sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)


def test_a_text_that_begins_again_is_told_once(sdk: openai.OpenAI, worked: WorkerServices) -> None:
    provider = Streaming()
    provider.say = words_then("one two three four", Overloaded("busy"))
    provider.pace = 0.05
    employ(worked, provider)
    stream = sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    assert "".join(texts(stream)) == "one two three four "


def test_another_text_in_its_place_is_an_error(sdk: openai.OpenAI, worked: WorkerServices) -> None:
    provider = Streaming()
    provider.pace = 0.05
    first = words_then("one two three four", Overloaded("busy"))
    provider.say = lambda call: first(call) if call == 1 else iter(["five ", "six "])
    employ(worked, provider)
    stream = sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    heard: list[str] = []
    with pytest.raises(openai.APIError) as caught:
        heard.extend(text for chunk in stream for text in texts([chunk]))
    assert caught.value.code == "answer_began_again"
    assert "one two ".startswith("".join(heard))


def test_what_breaks_after_a_text_is_an_error_in_the_stream(
    sdk: openai.OpenAI, worked: WorkerServices
) -> None:
    provider = Streaming()
    provider.pace = 0.05
    provider.say = words_then("one two three four", InvalidProviderRequest("It is wrong."))
    employ(worked, provider)
    with pytest.raises(openai.APIError, match="It is wrong") as caught:
        list(sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    assert not isinstance(caught.value, openai.APIStatusError)


@contextmanager
def asking(stack: WorkerServices, **body: Any) -> Iterator[tuple[JobView, Callable[[], None]]]:
    """The job of a client, and what lets the client hang up."""
    employ(stack, FakeProvider())
    stack.model_names.listed()  # code is loaded for the first name
    key = stack.keys.create("ada@example.org", "Test")
    with live_server(stack) as (_, url):
        connection = HTTPConnection(url.removeprefix("http://"), timeout=60)
        connection.request(
            "POST",
            "/openai/v1/chat/completions",
            json.dumps({"model": MODEL, "messages": HELLO, **body}),
            {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        wait_until(stack.jobs.get_many, "the job", 30)
        with closing(connection):
            yield stack.jobs.get_many()[0], connection.close


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("is_kept", [False, True], ids=["not kept", "kept"])
def test_a_client_that_hangs_up_cancels_its_job_unless_it_keeps_it(
    stack: WorkerServices, is_streamed: bool, is_kept: bool
) -> None:
    with asking(stack, stream=is_streamed, store=is_kept) as (job, hang_up):
        assert state(stack, job) is JobState.QUEUED
        hang_up()
        if not is_kept:
            wait_until(lambda: state(stack, job) is JobState.CANCELLED, "the cancel", 30)
    # The server has ended, and so has all that was asked of it.
    assert state(stack, job) is (JobState.QUEUED if is_kept else JobState.CANCELLED)


def test_a_client_that_hangs_up_in_the_text_cancels_its_job(worked: WorkerServices) -> None:
    provider = Streaming()
    provider.pace = 0.2
    provider.say = lambda _: iter(["word "] * 100)
    with openai_client(worked) as sdk:
        employ(worked, provider)
        stream = sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        next(chunk for chunk in stream if texts([chunk]) != [""])
        stream.close()
        [job] = worked.jobs.get_many()
        wait_until(lambda: worked.jobs.get(job.id).state is JobState.CANCELLED, "the cancel", 30)
        worked.heartbeat.beat()


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
def test_after_the_longest_wait_the_job_is_cancelled(
    stack: WorkerServices, fake_llm: FakeProvider, is_streamed: bool
) -> None:
    with another(stack, direct_wait_seconds=0.3) as hasty:
        fake_llm.serve(hasty)
        with openai_client(hasty) as sdk, pytest.raises(openai.InternalServerError) as caught:
            sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=is_streamed)
    assert (caught.value.status_code, caught.value.code) == (504, "timeout")
    [job] = stack.jobs.get_many()
    assert str(job.id) in caught.value.message
    assert job.state in {JobState.CANCELLED, JobState.EXPIRED}


def test_who_may_not_wait_makes_no_job(stack: WorkerServices, fake_llm: FakeProvider) -> None:
    with another(stack, max_watchers_of_user=0) as full:
        fake_llm.serve(full)
        with openai_client(full) as sdk, pytest.raises(openai.RateLimitError) as caught:
            sdk.chat.completions.create(model=MODEL, messages=HELLO)
    assert int(caught.value.response.headers["Retry-After"]) > 0
    assert stack.jobs.get_many() == []


def test_a_request_sent_again_by_its_key_gets_the_answer_that_was_paid_for(
    sdk: openai.OpenAI, worked: WorkerServices, fake_llm: FakeProvider
) -> None:
    for _ in range(2):
        sdk.chat.completions.create(
            model=MODEL, messages=HELLO, extra_headers={"Idempotency-Key": "once"}
        )
    assert fake_llm.calls == 1


def test_flex_lets_others_go_first(stack: WorkerServices) -> None:
    with asking(stack, service_tier="flex") as (job, _):
        assert row(stack, job).queue == Queue.GENERATION_BULK


def test_a_silent_stream_says_that_it_is_there(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    """While a job waits, proxies hear comments, which no client reads."""
    with another(stack, events_heartbeat_seconds=0.2) as patient:
        fake_llm.serve(patient)
        with (
            openai_client(patient) as sdk,
            sdk.chat.completions.with_streaming_response.create(
                model=MODEL, messages=HELLO, stream=True
            ) as response,
        ):
            lines = response.iter_lines()
            assert next(lines) == ": keep-alive"
            with working(patient):
                said = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert said[0]["choices"][0]["delta"]["role"] == "assistant"
    assert said[-1]["choices"][0]["finish_reason"] == "stop"


def test_the_field_at_fault_is_the_one_that_was_sent(
    sdk: openai.OpenAI, fake_llm: FakeProvider
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=-1)
    assert caught.value.param == "max_completion_tokens"
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=-1)
    assert caught.value.param == "max_tokens"
