"""Anthropic's own client gets what it would get from Anthropic, from any provider."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import MessageParam

from promptstack.repositories.models import JobState
from promptstack.services.llm.errors import InvalidProviderRequest
from promptstack.tasks.worker_services import WorkerServices
from tests.direct import working
from tests.fakes import FakeProvider, employ, raises
from tests.http import live_server
from tests.integration.streams.test_streamed_jobs import Streaming
from tests.runs import in_ledger

MODEL = "fake/fake-1"
HELLO: list[MessageParam] = [{"role": "user", "content": "Hello."}]


@pytest.fixture
def sdk(stack: WorkerServices) -> Iterator[anthropic.Anthropic]:
    key = stack.keys.create("ada@example.org", "Test", requests_a_minute=1_000)
    with (
        live_server(stack) as (_, url),
        anthropic.Anthropic(
            base_url=f"{url}/anthropic", api_key=key, max_retries=0, timeout=60
        ) as client,
        working(stack),
    ):
        yield client


def test_an_answer_is_a_message(
    stack: WorkerServices, fake_llm: FakeProvider, sdk: anthropic.Anthropic
) -> None:
    raw = sdk.messages.with_raw_response.create(
        model=MODEL, messages=HELLO, max_tokens=9, system="Be kind.", stop_sequences=["END"]
    )
    made = raw.parse()
    [job] = stack.jobs.get_many()
    assert [block.text for block in made.content if block.type == "text"] == [
        "You said: Be kind.\nHello."
    ]
    assert (made.id, made.stop_reason) == (f"msg_{job.id.hex}", "end_turn")
    assert (job.provider, job.model, job.state) == ("fake", "fake-1", JobState.SUCCEEDED)
    assert raw.headers["request-id"].startswith("req_")
    assert raw.headers["anthropic-ratelimit-requests-limit"] == "1000"


def test_a_stream_is_the_answer_piece_by_piece(
    stack: WorkerServices, sdk: anthropic.Anthropic
) -> None:
    provider = Streaming()
    provider.pace = 0.05
    employ(stack, provider)
    with sdk.messages.stream(model=MODEL, messages=HELLO, max_tokens=9) as stream:
        pieces = list(stream.text_stream)
        whole = stream.get_final_message()
    assert "".join(pieces) == "one two three four "
    assert len(pieces) > 1
    assert (whole.stop_reason, whole.id) == ("end_turn", f"msg_{stack.jobs.get_many()[0].id.hex}")
    assert whole.usage.output_tokens > 0


def test_a_failure_is_an_error_of_the_client(
    stack: WorkerServices, fake_llm: FakeProvider, sdk: anthropic.Anthropic
) -> None:
    fake_llm.on_call = raises(InvalidProviderRequest("It is wrong."))
    with pytest.raises(anthropic.BadRequestError) as caught:
        sdk.messages.create(model=MODEL, messages=HELLO, max_tokens=9)
    body = caught.value.body
    assert isinstance(body, dict)
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert body["request_id"] == caught.value.request_id


def test_what_is_wrong_with_a_request_is_said(
    fake_llm: FakeProvider, sdk: anthropic.Anthropic
) -> None:
    with pytest.raises(anthropic.NotFoundError, match="no generation model"):
        sdk.messages.create(model="demo/nobodys", messages=HELLO, max_tokens=9)
    with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\].type"):
        sdk.messages.create(
            model=MODEL,
            messages=HELLO,
            max_tokens=9,
            tools=[{"type": "web_search_20250305", "name": "web_search"}],
        )
    with pytest.raises(anthropic.BadRequestError, match="top_k"):
        sdk.messages.create(model=MODEL, messages=HELLO, max_tokens=9, extra_body={"top_k": 3})
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        sdk.post("/v1/messages", body={"model": MODEL, "messages": HELLO}, cast_to=object)
    with pytest.raises(anthropic.AuthenticationError) as caught:
        sdk.with_options(api_key="ps_nonesuch").messages.create(
            model=MODEL, messages=HELLO, max_tokens=9
        )
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "authentication_error"


def test_tokens_are_estimated_without_asking_anybody(
    stack: WorkerServices, sdk: anthropic.Anthropic
) -> None:
    def counted(text: str) -> int:
        messages: Any = [{"role": "user", "content": text}]
        return sdk.messages.count_tokens(model="demo/demo-1", messages=messages).input_tokens

    assert 0 < counted("x") < 50
    assert 1_000 <= counted("x" * 4_000) < 1_050
    with pytest.raises(anthropic.NotFoundError):
        sdk.messages.count_tokens(model="nobody/any", messages=[{"role": "user", "content": "x"}])
    assert in_ledger(stack, "SELECT count(*) FROM jobs") == 0
