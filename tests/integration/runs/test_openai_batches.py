"""Files in the form of OpenAI's Batch API as sources of runs, at every door."""

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from promptstack.repositories.run_models import Run
from promptstack.services.errors import InvalidInput
from promptstack.services.runs.views import Preflight
from promptstack.services.sources.reading import Reading
from promptstack.tasks.worker_services import WorkerServices
from tests.http import serve
from tests.runs import work

CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
USER = [{"role": "user", "content": "Say hello."}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
BROKEN = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}


def request(body: dict[str, Any], url: str = CHAT, **more: Any) -> dict[str, Any]:
    return {"method": "POST", "url": url, "body": body, **more}


def lines(*requests: Any) -> io.BytesIO:
    return io.BytesIO("\n".join(map(json.dumps, requests)).encode())


@pytest.fixture
def prepared(stack: WorkerServices) -> Iterator[Any]:
    """Prepare runs of generations for OpenAI, and discard them."""
    ready: list[Preflight] = []

    def prepare(source: Any, provider: str = "openai", **how: Any) -> tuple[Preflight, Run]:
        ready.append(stack.runs.prepare_generation(source, provider=provider, **how))
        with stack.ledger.transaction() as unit:
            run = unit.runs.get(ready[-1].run_id)
            assert run is not None
            return ready[-1], run

    yield prepare
    for one in ready:
        stack.runs.discard(one.run_id)


def reasons(preflight: Preflight) -> dict[int, str]:
    return {fault.position: fault.reason for fault in preflight.faults}


def test_what_chat_completions_ask_for_is_asked(prepared: Any) -> None:
    body = {
        "model": "gpt-5-nano",
        "messages": USER,
        "temperature": 0,
        "max_completion_tokens": 20,
        "max_tokens": 20,
        "stop": "END",
        "seed": 7,
        "n": 1,
        "stream": False,
        "user": None,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "strict": True, "schema": SCHEMA},
        },
        "top_p": 0.5,
        "metadata": {"row": "1"},
    }
    ready, run = prepared(lines(request(body, custom_id="r-1"), request(body, custom_id="r-2")))
    assert (ready.items, ready.bad, run.model) == (2, 0, "gpt-5-nano")
    assert run.parameters == {
        "temperature": 0,
        "max_tokens": 20,
        "stop": ["END"],
        "seed": 7,
        "tools": [{"name": "look", "parameters": SCHEMA}],
        "tool_choice": "look",
        "json_schema": SCHEMA,
        "options": {"top_p": 0.5},
    }


def test_what_the_responses_api_is_asked_for_is_asked(prepared: Any) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": '{"a": "b"}'}
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        call,
        {**call, "call_id": "d", "id": "fc_1", "status": "completed"},
        {"type": "function_call_output", "call_id": "c", "output": "Blue."},
    ]
    how = {
        "model": "gpt-5-nano",
        "max_output_tokens": 20,
        "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
        "reasoning": {"effort": "low"},
    }
    ready, run = prepared(
        lines(
            request({"input": items, "instructions": "Be brief.", **how}, RESPONSES),
            request({"input": "Hi", **how}, RESPONSES),
            request({"input": [{"type": "reasoning"}], **how}, RESPONSES),
        )
    )
    assert reasons(ready) == {
        3: "The body has an input of another kind than messages, calls and their results."
    }
    assert run.parameters == {
        "max_tokens": 20,
        "json_schema": SCHEMA,
        "options": {"api": "responses", "reasoning": {"effort": "low"}},
    }


def test_what_is_told_beside_a_file_comes_before_what_stands_in_it(prepared: Any) -> None:
    body = {"model": "gpt-5-nano", "messages": USER, "temperature": 1}
    _, run = prepared(lines(request(body)), model="gpt-5", temperature=0.5, system="Be brief.")
    assert run.model == "gpt-5"
    assert run.parameters == {"temperature": 0.5, "system": "Be brief."}


def test_a_request_that_cannot_be_honoured_is_told_by_its_line(prepared: Any) -> None:
    good = {"model": "gpt-5-nano", "messages": USER}
    refused: list[tuple[Any, str]] = [
        (request({"messages": USER, "temperature": 3}), "temperature: Input should be less"),
        (request(good, url="/v1/completions"), "must be a POST to /v1/chat/completions"),
        (request(good, method="GET"), "must be a POST to /v1/chat/completions"),
        (request({"input": "a"}, EMBEDDINGS), "hand it in by `runs embed`"),
        (request({**good, "n": 2}), "The body asks for n; an item has one answer."),
        (request({**good, "stream": True}), "asks for stream"),
        (request({**good, "logprobs": True}), "asks for logprobs"),
        (request({**good, "model": 5}), "has a model of another type"),
        (request({**good, "stop": 5}), "has a stop of another type"),
        (request({**good, "tools": [{"type": "web_search"}]}), "of the type function"),
        (request({**good, "max_tokens": 1, "max_completion_tokens": 2}), "that differ"),
        (request({**good, "response_format": {"type": "grammar"}}), "neither text nor json_object"),
        (request({"model": "gpt-5-nano"}), "has no messages"),
        (request({**good, "messages": [{"role": "boss"}]}), "not right at '0.role'"),
        (request({**good, "model": "gpt-5"}), "model differs from line 2. All requests"),
        (request({"messages": USER}), "model differs from line 2. All requests"),
        (request({**good, "temperature": 5}), "temperature: Input should be less"),
        (request({**good, "response_format": BROKEN}), "is no JSON schema"),
        ({"text": "plain"}, "has no 'url'; line 2 is a request"),
    ]
    first, others = refused[0][0], [one for one, _ in refused[1:]]
    ready, run = prepared(lines(first, request(good), *others, request(good)))
    assert (ready.items, ready.bad) == (len(refused) + 2, len(refused))
    assert (run.model, run.parameters) == ("gpt-5-nano", {})
    found = reasons(ready)
    for position, (_, reason) in zip([1, *range(3, len(refused) + 2)], refused, strict=True):
        assert reason in found[position]
    assert ready.faults[0].code == "INVALID_INPUT"
    assert "`promptstack runs embed FILE --skip-bad` takes these" in found[5]


def test_a_first_line_that_is_no_whole_request_hurts_no_other(prepared: Any) -> None:
    good = request({"model": "gpt-5-nano", "messages": USER, "seed": 1})
    rest = [{**good, "url": 5}, {**good, "text": "beside"}]
    ready, run = prepared(lines({**good, "body": "text"}, {"url": CHAT}, good, *rest))
    assert reasons(ready) == {
        1: "The field 'body' must be an object, and is a string.",
        2: "The record has no 'body'; line 3 is a request, so all must be.",
        4: "The field 'url' must be a string, and is a number.",
        5: "The record has text beside its body; keep one.",
    }
    assert run.parameters == {"seed": 1}


def test_a_request_of_a_list_is_told_from_which_item_it_differs(prepared: Any) -> None:
    body = {"model": "gpt-5-nano", "messages": USER}
    ready, _ = prepared([request(body), request({**body, "model": "gpt-5"})])
    assert reasons(ready)[2].startswith("model differs from item 1. ")


def test_what_only_openai_knows_is_refused_elsewhere(prepared: Any) -> None:
    body = {"model": "claude-haiku-4-5", "messages": USER, "max_tokens": 5}
    ready, run = prepared(
        lines(request({**body, "frequency_penalty": 1}), request(body)), provider="anthropic"
    )
    assert reasons(ready) == {
        1: "Provider 'anthropic' does not know frequency_penalty of a request to OpenAI; "
        "leave it out."
    }
    assert run.parameters == {"max_tokens": 5}
    _, run = prepared(
        lines(request({"model": "m", "input": "Hi"}, RESPONSES)), provider="anthropic"
    )
    assert (run.model, run.parameters) == ("m", {})


def test_a_plain_source_stays_what_it_is(prepared: Any) -> None:
    page = {"text": "A page.", "url": "https://example.com/responses", "body": {"a": 1}}
    named = request({"messages": USER, "model": "gpt-5"})
    ready, run = prepared(lines(page, {"prompt": "x"}, request({"messages": USER}), named))
    assert list(reasons(ready)) == [4]
    assert "model differs from the records before it" in reasons(ready)[4]
    assert run.parameters == {}
    asked = request({"text": "in a body"}, text=None)
    ready, _ = prepared(lines(asked), reading=Reading(template="{url}"))
    assert ready.bad == 0


@pytest.mark.parametrize("kind", ["path", "packed", "stream", "list", "iterator"])
def test_a_batch_of_openais_is_done_under_its_ids(
    kind: str, stack: WorkerServices, tmp_path: Path
) -> None:
    requests = [
        request({"model": "wordllama-256", "input": text}, EMBEDDINGS, custom_id=f"r-{text}")
        for text in ("one", "two")
    ]
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines(*requests).getvalue())
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    sources: dict[str, Any] = {
        "path": path,
        "packed": packed,
        "stream": lines(*requests),
        "list": requests,
        "iterator": iter(requests),
    }
    run = stack.runs.embed(sources[kind], provider="local")
    assert (run.total, run.model) == (2, "wordllama-256")
    work(stack, run.id)
    assert [row.custom_id for row in stack.run_results.produced(run.id)] == ["r-one", "r-two"]


def test_embeddings_that_cannot_be_honoured_are_told_by_their_line(stack: WorkerServices) -> None:
    model = "wordllama-256"
    ready = stack.runs.prepare_embedding(
        lines(
            request({"model": model, "input": "a", "dimensions": 64}, EMBEDDINGS),
            request({"model": model, "input": ["a"], "encoding_format": "float"}, EMBEDDINGS),
            request({"model": model, "input": ["a", "b"]}, EMBEDDINGS),
            request({"model": model, "input": [[1, 2]]}, EMBEDDINGS),
            request({"model": "other", "input": "a"}, EMBEDDINGS),
            request({"model": model, "input": "a", "task": "x"}, EMBEDDINGS),
            request({"messages": USER}, CHAT),
        ),
        provider="local",
    )
    stack.runs.discard(ready.run_id)
    found = reasons(ready)
    assert sorted(found) == [1, 3, 4, 5, 6, 7]
    assert "The size of vectors can't be chosen at provider 'local'" in found[1]
    assert "must have one text as input" in found[3]
    assert "has no embedding model 'other'" in found[5]
    assert "has task, which an embedding can't honour" in found[6]
    assert "hand it in by `runs generate`" in found[7]


def test_requests_are_items_over_http(stack: WorkerServices) -> None:
    items = [request({"model": "demo-1", "messages": USER, "seed": 7}, custom_id="r")]
    with serve(stack) as client:
        body = {"items": items, "provider": "demo"}
        answer = client.post("/api/v1/runs/generations", json=body)
        assert answer.status_code == 202, answer.text
        work(stack, UUID(answer.json()["id"]))
        [row] = stack.run_results.produced(UUID(answer.json()["id"]))
    assert row.custom_id == "r"
    assert "Say hello." in str((row.answer or {})["text"])


def test_a_source_that_cannot_be_read_is_refused_before_a_run_is_there(prepared: Any) -> None:
    with pytest.raises(InvalidInput, match="cut off"):
        prepared(io.BytesIO(gzip.compress(b'{"prompt": "x"}\n')[:-9]))
