"""Responses: OpenAI's own client gets what it would get from OpenAI, from any provider."""

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from promptstack.repositories.models import JobState
from promptstack.services.llm.answers import LLMResponse
from promptstack.services.llm.errors import InvalidProviderRequest, Overloaded
from promptstack.tasks.worker_services import WorkerServices
from tests.direct import openai_client, working
from tests.fakes import FakeProvider, HeldProvider, employ, raises
from tests.integration.streams.test_streamed_jobs import TEXT, Streaming, words_then
from tests.jobs import another, execute, make_due
from tests.processes import wait_until

MODEL = "fake/fake-1"
SAID = "".join(f"{word} " for word in TEXT.split())


@pytest.fixture
def sdk(stack: WorkerServices) -> Iterator[openai.OpenAI]:
    with openai_client(stack) as client:
        yield client


@pytest.fixture
def worked(stack: WorkerServices) -> Iterator[WorkerServices]:
    with working(stack):
        yield stack


@pytest.fixture
def streaming(stack: WorkerServices) -> Streaming:
    provider = Streaming()
    employ(stack, provider)
    return provider


def ended(sdk: openai.OpenAI, response: Response) -> Response:
    """The response once it has ended."""
    found = [response]

    def look() -> bool:
        found.append(sdk.responses.retrieve(response.id))
        return found[-1].status not in {"queued", "in_progress"}

    wait_until(look, "the response")
    return found[-1]


def deltas(events: Any) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def test_an_answer_is_a_response(
    sdk: openai.OpenAI, worked: WorkerServices, fake_llm: FakeProvider
) -> None:
    raw = sdk.responses.with_raw_response.create(
        model=MODEL,
        input="Hello.",
        instructions="Be brief.",
        temperature=0.5,
        max_output_tokens=9,
        metadata={"a": "b"},
        user="ada",
    )
    made = Response.model_validate_json(raw.content)
    [job] = worked.jobs.get_many()
    assert made.output_text == "You said: Be brief.\nHello."
    assert (made.id, made.status, made.error) == (f"resp_{job.id.hex}", "completed", None)
    assert (made.instructions, made.metadata, made.model) == ("Be brief.", {"a": "b"}, "fake-1")
    assert made.usage is not None
    assert made.usage.total_tokens == 5
    assert sdk.responses.retrieve(made.id).to_dict() == made.to_dict()


def test_one_in_the_background_is_asked_for(
    sdk: openai.OpenAI, worked: WorkerServices, fake_llm: FakeProvider
) -> None:
    made = sdk.responses.create(
        model=MODEL, input="Hello.", background=True, service_tier="flex", store=False
    )
    assert (made.status, made.background, made.output) == ("queued", True, [])
    got = ended(sdk, made)
    assert (got.output_text, got.service_tier) == ("You said: Hello.", "flex")
    assert got.completed_at is not None


def test_a_key_that_is_sent_again_stands_for_the_same_request(sdk: openai.OpenAI) -> None:
    def create(**asked: Any) -> Response:
        headers = {"Idempotency-Key": "k"}
        made: Response = sdk.responses.create(
            model="demo/demo-1", input="Hi.", background=True, extra_headers=headers, **asked
        )
        return made

    first = create(metadata={"a": "b"})
    assert create(metadata={"a": "b"}).id == first.id
    with pytest.raises(openai.ConflictError, match="another request"):
        create()


def test_a_stream_has_openais_events(
    sdk: openai.OpenAI, worked: WorkerServices, streaming: Streaming
) -> None:
    streaming.pace = 0.02
    events = list(sdk.responses.create(model=MODEL, input="Hello.", stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert [kind for kind in kinds if kind != "output_text.delta"] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert deltas(events) == SAID
    assert [event.sequence_number for event in events] == list(range(len(events)))
    with sdk.responses.stream(model=MODEL, input="Hello.") as stream:
        assert stream.get_final_response().output_text == SAID


def test_a_stream_goes_on_at_any_number_from_any_server(
    sdk: openai.OpenAI, worked: WorkerServices, streaming: Streaming
) -> None:
    """While it runs, after its end, and when nothing but the ledger is left."""
    streaming.pace = 0.05
    stream = sdk.responses.create(model=MODEL, input="Hello.", background=True, stream=True)
    first = [next(stream) for _ in range(6)]
    assert first[-1].type == "response.output_text.delta"
    stream.close()
    one = first[0].response.id  # type: ignore[union-attr]
    rest = list(sdk.responses.retrieve(one, stream=True, starting_after=5))
    whole = [event.to_dict() for event in [*first, *rest]]
    assert whole[-1]["type"] == "response.completed"
    assert deltas([*first, *rest]) == SAID
    assert ended(sdk, sdk.responses.retrieve(one)).status == "completed"
    worked.redis.flushdb()
    with another(worked) as other, openai_client(other) as elsewhere:
        for after in (0, 3, 6, len(whole) - 2):
            told = elsewhere.responses.retrieve(one, stream=True, starting_after=after)
            assert [event.to_dict() for event in told] == whole[after + 1 :]


def test_a_try_that_breaks_off_after_text_ends_the_stream(
    sdk: openai.OpenAI, stack: WorkerServices, streaming: Streaming
) -> None:
    """What was told is joined to no other text, and its number says of which try it is."""
    streaming.say = words_then("It was cold", Overloaded("busy"))
    stream = sdk.responses.create(model=MODEL, input="Hello.", background=True, stream=True)
    next(stream)
    [job] = stack.jobs.get_many()
    execute(stack, job.id)
    told = [next(stream)]
    while told[-1].type != "response.output_text.delta":
        told.append(next(stream))
    streaming.say = words_then(TEXT)
    make_due(stack, job)
    execute(stack, job.id)
    with pytest.raises(openai.APIError, match="began again"):
        list(stream)
    one = f"resp_{job.id.hex}"
    with pytest.raises(openai.APIError, match="began again"):
        list(sdk.responses.retrieve(one, stream=True, starting_after=told[-1].sequence_number))
    assert deltas(sdk.responses.retrieve(one, stream=True)) == SAID


def test_one_that_is_cancelled_stays_so(
    sdk: openai.OpenAI, worked: WorkerServices, fake_llm: FakeProvider
) -> None:
    held = HeldProvider()
    employ(worked, held)
    made = sdk.responses.create(model="held/held-1", input="Hello.", background=True, stream=True)
    events = [next(made) for _ in range(3)]
    assert events[-1].type == "response.in_progress"
    one = events[0].response.id  # type: ignore[union-attr]
    assert sdk.responses.cancel(one).status == "cancelled"
    worked.heartbeat.beat()  # it closes the call
    [*_, last] = made
    assert last.response.status == "cancelled"  # type: ignore[union-attr]
    assert sdk.responses.cancel(one).status == "cancelled"
    done = ended(sdk, sdk.responses.create(model=MODEL, input="Hello.", background=True))
    assert sdk.responses.cancel(done.id).status == "completed"


def test_one_that_is_deleted_is_gone_with_its_job(
    sdk: openai.OpenAI, worked: WorkerServices, fake_llm: FakeProvider
) -> None:
    made = sdk.responses.create(model=MODEL, input="Hello.")
    waiting = HeldProvider()
    employ(worked, waiting)
    runs = sdk.responses.create(model="held/held-1", input="Hello.", background=True)
    wait_until(lambda: waiting.held, "the call")
    for one in (made.id, runs.id):
        sdk.responses.delete(one)
        with pytest.raises(openai.NotFoundError):
            sdk.responses.retrieve(one)
    worked.heartbeat.beat()  # it closes the call
    assert worked.jobs.get_many() == []


def test_one_that_is_not_stored_can_not_be_asked_for(
    sdk: openai.OpenAI, worked: WorkerServices, fake_llm: FakeProvider
) -> None:
    made = sdk.responses.create(model=MODEL, input="Hello.", store=False)
    assert (made.output_text, made.to_dict()["store"]) == ("You said: Hello.", False)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.responses.create(model=MODEL, input="And?", previous_response_id=made.id)
    assert caught.value.param == "previous_response_id"


def test_a_conversation_goes_on(
    sdk: openai.OpenAI, worked: WorkerServices, fake_llm: FakeProvider
) -> None:
    """By the response before, whose instructions don't hold any more, or by references to items."""
    first = sdk.responses.create(model=MODEL, input="One", instructions="Be brief.")
    second = sdk.responses.create(
        model=MODEL, input="Two", instructions="Be kind.", previous_response_id=first.id
    )
    third = sdk.responses.create(model=MODEL, input="Three", previous_response_id=second.id)
    said = "You said: Be brief.\nOne"
    assert fake_llm.prompts[1] == f"Be kind.\nOne\n{said}\nTwo"
    assert fake_llm.prompts[2] == (f"One\n{said}\nTwo\nYou said: Be kind.\nOne\n{said}\nTwo\nThree")
    assert third.previous_response_id == second.id
    reference: Any = {"type": "item_reference", "id": first.output[0].id}
    sdk.responses.create(model=MODEL, input=[reference, {"role": "user", "content": "Four"}])
    assert fake_llm.prompts[3] == f"{said}\nFour"
    reference["id"] = "msg_" + "0" * 32
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.responses.create(model=MODEL, input=[reference])
    assert caught.value.param == "input[0].id"


def test_input_items_are_its_own_input(
    sdk: openai.OpenAI, worked: WorkerServices, fake_llm: FakeProvider
) -> None:
    first = sdk.responses.create(model=MODEL, input="One", instructions="Be brief.")
    call: Any = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
    output: Any = {"type": "function_call_output", "call_id": "c1", "output": "warm"}
    made = sdk.responses.create(
        model=MODEL,
        input=[{"role": "user", "content": "Two"}, call, output],
        previous_response_id=first.id,
    )
    items = list(sdk.responses.input_items.list(made.id, order="asc", limit=1))
    assert [item.type for item in items] == ["message", "function_call", "function_call_output"]
    first_item: Any = items[0].to_dict()
    assert first_item["content"] == [{"type": "input_text", "text": "Two"}]
    newest_first = sdk.responses.input_items.list(made.id)
    assert [item.id for item in newest_first] == [item.id for item in reversed(items)]
    with pytest.raises(openai.BadRequestError):
        sdk.responses.input_items.list(made.id, limit=101)


def test_an_answer_is_parsed(
    sdk: openai.OpenAI, worked: WorkerServices, fake_llm: FakeProvider
) -> None:
    class Weather(BaseModel):
        place: str
        degrees: int

    fake_llm.answer = lambda _: '{"place": "Wien", "degrees": 3}'
    made = sdk.responses.parse(model=MODEL, input="Hello.", text_format=Weather)
    assert made.output_parsed == Weather(place="Wien", degrees=3)
    assert made.text is not None
    assert made.text.format is not None
    assert made.text.format.type == "json_schema"


def test_tools_are_called(sdk: openai.OpenAI, worked: WorkerServices) -> None:
    provider = FakeProvider()

    async def call(*_: Any, **__: Any) -> LLMResponse:
        calls: Any = ({"id": "c1", "name": "look", "arguments": {"at": "Wien"}},)
        return LLMResponse("", "fake-1", 3, 2, "tool_calls", tool_calls=calls)

    provider.service._generate = call  # type: ignore[method-assign]
    employ(worked, provider)
    tool: Any = {
        "type": "function",
        "name": "look",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
        "strict": False,
    }
    made = sdk.responses.create(model=MODEL, input="Hello.", tools=[tool], tool_choice="auto")
    [item] = made.output
    assert item.type == "function_call"
    assert (item.call_id, item.name, item.arguments) == ("c1", "look", '{"at":"Wien"}')
    [given] = made.tools
    assert given.type == "function"
    with sdk.responses.stream(model=MODEL, input="Hello.", tools=[tool]) as stream:
        kinds = [event.type for event in stream]
        assert "response.function_call_arguments.done" in kinds
        assert stream.get_final_response().output[0].type == "function_call"
    output: Any = {"type": "function_call_output", "call_id": "c1", "output": "warm"}
    again = sdk.responses.create(model=MODEL, input=[output], previous_response_id=made.id)
    assert again.status == "completed"


def test_what_failed_is_told_in_its_status(
    sdk: openai.OpenAI, worked: WorkerServices, fake_llm: FakeProvider
) -> None:
    fake_llm.on_call = raises(*[InvalidProviderRequest("It is wrong.")] * 2)
    made = ended(sdk, sdk.responses.create(model=MODEL, input="Hello.", background=True))
    assert (made.status, made.output) == ("failed", [])
    assert made.error is not None
    assert (made.error.code, made.error.message) == ("invalid_prompt", "It is wrong.")
    [*_, last] = sdk.responses.retrieve(made.id, stream=True)
    assert (last.type, last.response.status) == ("response.failed", "failed")  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError):  # as OpenAI answers who waits
        sdk.responses.create(model=MODEL, input="Hello.")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"include": ["message.output_text.logprobs"]}, "include"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"reasoning": {"effort": "high"}}, "reasoning"),
    ({"truncation": "auto"}, "truncation"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"metadata": {"a": "b" * 513}}, "metadata"),
    ({"temperature": 3}, "temperature"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"background": "yes"}, "background"),
    ({"input": []}, "input"),
    ({"input": [{"role": "someone", "content": "x"}]}, "input"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input",
    ),
    ({"text": {"format": {"type": "grammar"}}}, "text.format"),
    ({"safety_identifier": "x" * 201}, "safety_identifier"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}] * 1_001}, "input"),
]


def test_what_can_not_be_done_is_refused_by_its_name(
    sdk: openai.OpenAI, fake_llm: FakeProvider, subtests: pytest.Subtests
) -> None:
    for asked, param in REFUSED:
        given: dict[str, Any] = {"model": MODEL, "input": "Hello.", **asked}
        with subtests.test(str(asked)[:80]):
            with pytest.raises(openai.BadRequestError) as caught:
                sdk.responses.create(**given)
            assert (caught.value.param or "").startswith(param), caught.value.body
            assert caught.value.type == "invalid_request_error"


def test_fields_that_change_no_answer_are_no_reason_to_refuse(
    sdk: openai.OpenAI, worked: WorkerServices, fake_llm: FakeProvider
) -> None:
    made = sdk.responses.create(
        model=MODEL,
        input="Hello.",
        include=["reasoning.encrypted_content"],
        parallel_tool_calls=True,
        prompt_cache_key="x",
        safety_identifier="y",
        truncation="disabled",
        service_tier="auto",
        extra_body={"a_new_field": None},
    )
    assert (made.status, made.service_tier) == ("completed", "default")


def test_another_users_response_is_not_there(
    sdk: openai.OpenAI, worked: WorkerServices, fake_llm: FakeProvider
) -> None:
    made = sdk.responses.create(model=MODEL, input="Hello.")
    key = worked.keys.create("eve@example.org", "Eve")
    eve = sdk.with_options(api_key=key)
    asks: list[Callable[[], object]] = [
        lambda: eve.responses.retrieve(made.id),
        lambda: eve.responses.retrieve(made.id, stream=True),
        lambda: eve.responses.cancel(made.id),
        lambda: eve.responses.delete(made.id),
        lambda: eve.responses.input_items.list(made.id),
    ]
    for ask in asks:
        with pytest.raises(openai.NotFoundError):
            ask()
    with pytest.raises(openai.BadRequestError):
        eve.responses.create(model=MODEL, input="And?", previous_response_id=made.id)
    reference: Any = {"type": "item_reference", "id": made.output[0].id}
    with pytest.raises(openai.BadRequestError):
        eve.responses.create(model=MODEL, input=[reference])
    assert sdk.responses.retrieve(made.id).status == "completed"


@pytest.mark.parametrize("keeps", [{}, {"store": True}, {"background": True}], ids=str)
def test_who_leaves_a_stream_ends_it_unless_it_is_kept(
    sdk: openai.OpenAI, worked: WorkerServices, keeps: Any
) -> None:
    held = HeldProvider()
    employ(worked, held)
    stream = sdk.responses.create(model="held/held-1", input="Hello.", stream=True, **keeps)
    next(stream)
    wait_until(lambda: held.held, "the call")
    stream.close()
    [job] = worked.jobs.get_many()
    if not keeps:
        wait_until(lambda: worked.jobs.get(job.id).state is JobState.CANCELLED, "the cancel")
        worked.heartbeat.beat()  # it closes the call
        return
    worked.loop.run(held.let_go(0))
    assert ended(sdk, sdk.responses.retrieve(f"resp_{job.id.hex}")).status == "completed"
