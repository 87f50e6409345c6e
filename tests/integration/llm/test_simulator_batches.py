"""The simulator's files and batches, driven by the unchanged official SDKs."""

import io
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest
from anthropic.types.messages import MessageBatch
from openai.types import Batch

from promptstack.simulator.answers import text_for
from promptstack.simulator.faults import NO_FAULT
from promptstack.simulator.files import MOST_BYTES, Files
from promptstack.simulator.ledger import billing_key
from promptstack.simulator.process import SimulatorProcess
from promptstack.simulator.receiving import Upload
from promptstack.simulator.wire import ProviderRequest, Refusal
from tests.simulators import ForkedSimulator

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
GPT = "gpt-5-mini"
EMBEDDING = "text-embedding-3-small"
CLAUDE = "claude-haiku-4-5"
ENDS = {"completed", "failed", "expired", "cancelled"}
SECONDS = 60.0


@pytest.fixture(scope="module")
def running() -> Iterator[SimulatorProcess]:
    with ForkedSimulator() as simulator:
        yield simulator


@pytest.fixture
def simulator(running: SimulatorProcess) -> SimulatorProcess:
    running.reset()
    running.set_latency(0.0)
    return running


@pytest.fixture
def client(simulator: SimulatorProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        api_key="k", base_url=simulator.url, max_retries=0, timeout=SECONDS
    ) as opened:
        yield opened


@pytest.fixture
def claude(simulator: SimulatorProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        api_key="k", base_url=simulator.origin, max_retries=0, timeout=SECONDS
    ) as opened:
        yield opened


def chat_line(number: int, **more: Any) -> dict[str, Any]:
    body = {"model": GPT, "messages": [{"role": "user", "content": f"Say {number}."}], **more}
    return {"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": body}


def begin(client: openai.OpenAI, *lines: Any, endpoint: Any = CHAT, **more: Any) -> Batch:
    content = b"\n".join(line if isinstance(line, bytes) else dump(line) for line in lines)
    given = client.files.create(file=("in.jsonl", content), purpose="batch")
    assert client.files.wait_for_processing(given.id, max_wait_seconds=SECONDS).bytes == len(
        content
    )
    return client.batches.create(
        input_file_id=given.id, endpoint=endpoint, completion_window="24h", **more
    )


def dump(line: Any) -> bytes:
    return json.dumps(line).encode()


def until(look: Callable[[], Any], is_so: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + SECONDS
    while not is_so(seen := look()):
        assert time.monotonic() < deadline, seen
        time.sleep(0.01)
    return seen


def end_of(client: openai.OpenAI, batch: Batch) -> Batch:
    ended: Batch = until(
        lambda: client.batches.retrieve(batch.id), lambda seen: seen.status in ENDS
    )
    return ended


def rows_of(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    text = client.files.content(file_id).text
    assert client.files.retrieve(file_id).bytes == len(text.encode())
    return {row["custom_id"]: row for row in map(json.loads, text.splitlines())}


def counts(batch: Batch) -> tuple[int, int, int]:
    assert batch.request_counts is not None
    told = batch.request_counts
    return told.total, told.completed, told.failed


def test_a_file_is_kept_listed_read_and_deleted(client: openai.OpenAI) -> None:
    kept = [
        client.files.create(
            file=io.BytesIO(b"one\n" * number),
            purpose="user_data",
            expires_after={"anchor": "created_at", "seconds": 3_600},
        )
        for number in (1, 2, 3)
    ]
    assert kept[0].expires_at == kept[0].created_at + 3_600

    assert [file.id for file in client.files.list(limit=1)] == [file.id for file in kept[::-1]]
    first = client.files.list(limit=2, order="asc")
    assert ([file.id for file in first.data], first.has_more) == ([kept[0].id, kept[1].id], True)
    assert client.files.list(purpose="batch").data == []
    assert client.files.content(kept[1].id).read() == b"one\none\n"
    assert client.files.delete(kept[1].id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(kept[1].id)


def test_a_batch_of_each_endpoint_is_answered_line_by_line(
    client: openai.OpenAI, simulator: SimulatorProcess
) -> None:
    chats = begin(client, chat_line(0), chat_line(1), metadata={"night": "3"})
    assert (chats.status, counts(chats), chats.metadata) == (
        "validating",
        (0, 0, 0),
        {"night": "3"},
    )
    ended = end_of(client, chats)
    assert (ended.status, counts(ended), ended.error_file_id) == ("completed", (2, 2, 0), None)
    assert None not in {ended.in_progress_at, ended.finalizing_at, ended.completed_at}
    rows = rows_of(client, ended.output_file_id)
    assert list(rows) == ["line-0", "line-1"]
    response = rows["line-1"]["response"]
    assert response["status_code"] == 200
    assert response["body"]["choices"][0]["message"]["content"] == text_for(GPT, ["Say 1."])
    assert rows_of(client, ended.output_file_id) == rows
    key = billing_key(CHAT, GPT, "Say 1.")
    assert simulator.ledger()[key] == 1

    embed: Any = {"model": EMBEDDING, "input": ["a", "b"], "encoding_format": "base64"}
    line = {"custom_id": "v", "method": "POST", "url": EMBEDDINGS, "body": embed}
    ended = end_of(client, begin(client, line, endpoint=EMBEDDINGS))
    body = rows_of(client, ended.output_file_id)["v"]["response"]["body"]
    direct = client.with_raw_response.embeddings.create(**embed).http_response.json()
    assert body == direct

    ask = {"model": GPT, "input": "Hi"}
    line = {"custom_id": "r", "method": "POST", "url": "/v1/responses", "body": ask}
    ended = end_of(client, begin(client, line, endpoint="/v1/responses"))
    body = rows_of(client, ended.output_file_id)["r"]["response"]["body"]
    assert (body["object"], body["status"]) == ("response", "completed")
    assert [one.id for one in client.batches.list(limit=1)][-1] == chats.id


def test_faults_hit_lines_as_they_hit_calls(
    client: openai.OpenAI, simulator: SimulatorProcess
) -> None:
    here = {"endpoint": CHAT}
    simulator.control(
        {"kind": "status", "status": 400, "code": "content_policy", **here},
        {"kind": "hang", **here},
        {"kind": "none", **here},
        {"kind": "refused", **here},
        {"kind": "stray", **here},
    )
    ended = end_of(client, begin(client, *map(chat_line, range(5))))

    assert (ended.status, counts(ended)) == ("expired", (5, 2, 3))
    good = rows_of(client, ended.output_file_id)
    bad = rows_of(client, ended.error_file_id)
    assert (list(good), list(bad)) == (["line-2", "line-3"], ["line-0", "line-1", "line-4"])
    assert good["line-3"]["response"]["body"]["choices"][0]["message"]["refusal"]
    refused = bad["line-0"]["response"]
    assert (refused["status_code"], bad["line-0"]["error"]) == (400, None)
    assert refused["body"]["error"]["code"] == "content_policy"
    assert (bad["line-1"]["response"], bad["line-1"]["error"]["code"]) == (None, "batch_expired")
    assert bad["line-4"]["response"]["status_code"] == 429
    assert sum(simulator.ledger().values()) == 2


def test_a_cancelled_batch_keeps_what_it_has(
    client: openai.OpenAI, simulator: SimulatorProcess
) -> None:
    simulator.set_latency(0.0, batch_seconds=4 * SECONDS)
    batch = begin(client, *map(chat_line, range(400)))
    look = lambda: client.batches.retrieve(batch.id)  # noqa: E731
    half = until(look, lambda seen: counts(seen)[1] > 1)
    assert half.status == "in_progress"

    stopping = client.batches.cancel(batch.id)
    assert (stopping.status, bool(stopping.cancelling_at)) == ("cancelling", True)
    ended = end_of(client, batch)
    total, done, failed = counts(ended)
    assert (ended.status, total, done + failed) == ("cancelled", 400, 400)
    good, bad = rows_of(client, ended.output_file_id), rows_of(client, ended.error_file_id)
    assert (len(good), len(bad)) == (done, failed)
    assert {row["error"]["code"] for row in bad.values()} == {"batch_cancelled"}
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [
        pytest.param([chat_line(0), b"{"], "invalid_json_line", 2, id="no-json"),
        pytest.param([chat_line(0), {"custom_id": "b"}], "invalid_json_line", 2, id="no-body"),
        pytest.param([chat_line(0), chat_line(0)], "duplicate_custom_id", 2, id="twice"),
        pytest.param([chat_line(0, stream=True)], "invalid_value", 1, id="stream"),
        pytest.param([{**chat_line(0), "url": EMBEDDINGS}], "invalid_url", 1, id="other-url"),
        pytest.param([chat_line(0), chat_line(1, model="b")], "mismatched_model", 2, id="models"),
        pytest.param([b"\n"], "empty_file", None, id="empty"),
    ],
)
def test_a_batch_of_a_bad_file_fails_with_the_line(
    client: openai.OpenAI, lines: list[Any], code: str, number: int | None
) -> None:
    ended = end_of(client, begin(client, *lines))

    assert (ended.status, ended.output_file_id, counts(ended)) == ("failed", None, (0, 0, 0))
    assert ended.errors is not None
    [error] = ended.errors.data or []
    assert (error.code, error.line) == (code, number)


def test_what_can_be_known_at_once_is_refused_at_once(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.batches.create(
            input_file_id="file-no", endpoint="/v1/embeddings", completion_window="24h"
        )
    with pytest.raises(openai.BadRequestError):
        begin(client, chat_line(0), endpoint="/v1/nothing")
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("a", b""), purpose="nothing")  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError):
        client.batches.list(limit=1_000)


def test_calls_about_batches_fail_as_others_do(
    client: openai.OpenAI, simulator: SimulatorProcess
) -> None:
    batch = end_of(client, begin(client, *map(chat_line, range(50))))
    simulator.control(
        {"kind": "status", "status": 503, "endpoint": batch.id},
        {"kind": "broken", "endpoint": "/content"},
    )

    with pytest.raises(openai.InternalServerError):
        client.batches.retrieve(batch.id)
    with pytest.raises(openai.APIConnectionError):
        client.files.content(batch.output_file_id or "")
    assert len(rows_of(client, batch.output_file_id)) == 50


def test_room_for_files_ends() -> None:
    files = Files()
    large = {"file": Upload("a", bytes(MOST_BYTES)), "purpose": "batch"}
    files.upload(ProviderRequest(large, {}, NO_FAULT))
    more = {"file": Upload("b", b"more"), "purpose": "batch"}
    with pytest.raises(Refusal) as caught:
        files.upload(ProviderRequest(more, {}, NO_FAULT))
    assert (caught.value.status, caught.value.code) == (413, "storage_limit_reached")

    files.reset()
    assert files.upload(ProviderRequest(more, {}, NO_FAULT)).body["bytes"] == 4


# Anthropic


def request(number: int, **more: Any) -> Any:
    turns = [{"role": "user", "content": f"Say {number}."}]
    params = {"model": CLAUDE, "max_tokens": 100, "messages": turns, **more}
    return {"custom_id": f"line-{number}", "params": params}


def end_of_messages(claude: anthropic.Anthropic, batch: MessageBatch) -> MessageBatch:
    ended: MessageBatch = until(
        lambda: claude.messages.batches.retrieve(batch.id),
        lambda seen: seen.processing_status == "ended",
    )
    return ended


def test_a_batch_of_messages(claude: anthropic.Anthropic, simulator: SimulatorProcess) -> None:
    simulator.control(
        {"kind": "status", "status": 529, "endpoint": "/v1/messages"},
        {"kind": "hang", "endpoint": "/v1/messages"},
    )
    batch = claude.messages.batches.create(requests=[request(number) for number in range(4)])
    assert (batch.processing_status, batch.request_counts.processing) == ("in_progress", 4)

    ended = end_of_messages(claude, batch)
    told = ended.request_counts
    assert (told.processing, told.succeeded, told.errored, told.expired) == (0, 2, 1, 1)
    results = {row.custom_id: row.result for row in claude.messages.batches.results(batch.id)}
    assert list(results) == [f"line-{number}" for number in range(4)]
    overloaded, late, good = results["line-0"], results["line-1"], results["line-3"]
    assert overloaded.type == "errored"
    assert overloaded.error.error.type == "overloaded_error"
    assert late.type == "expired"
    assert good.type == "succeeded"
    assert good.message.content[0].type == "text"
    assert good.message.content[0].text == text_for(CLAUDE, ["Say 3."])
    assert simulator.ledger()[billing_key("/v1/messages", CLAUDE, "Say 3.")] == 1


def test_batches_of_messages_are_listed_cancelled_and_deleted(
    claude: anthropic.Anthropic, simulator: SimulatorProcess
) -> None:
    simulator.set_latency(0.0, batch_seconds=SECONDS)
    made = [claude.messages.batches.create(requests=[request(0), request(1)]).id for _ in range(3)]
    assert [batch.id for batch in claude.messages.batches.list(limit=1)] == made[::-1]
    newer = claude.messages.batches.list(before_id=made[0], limit=1)
    assert ([batch.id for batch in newer.data], newer.has_more) == ([made[1]], True)

    with pytest.raises(anthropic.AnthropicError):
        claude.messages.batches.results(made[0])
    stopping = claude.messages.batches.cancel(made[0])
    assert (stopping.processing_status, bool(stopping.cancel_initiated_at)) == ("canceling", True)
    ended = end_of_messages(claude, stopping)
    assert ended.request_counts.canceled == 2
    assert {row.result.type for row in claude.messages.batches.results(made[0])} == {"canceled"}
    claude.messages.batches.delete(made[0])
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.batches.retrieve(made[0])


def test_a_batch_of_messages_that_is_wrong_is_refused(claude: anthropic.Anthropic) -> None:
    for wrong in ([], [request(0), request(0)], [request(0, stream=True)]):
        with pytest.raises(anthropic.BadRequestError):
            claude.messages.batches.create(requests=wrong)
