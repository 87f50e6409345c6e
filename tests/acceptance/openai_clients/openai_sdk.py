"""Drives OpenAI's own Python client; runs on each of its major versions, and prints what it saw."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import openai
from seen import report

GPT = "gpt-5-mini"
HANGING = "gpt-5-nano"
EMBEDDING = "text-embedding-3-small"
CHAT = "/v1/chat/completions"
ENDS = {"completed", "failed", "expired", "cancelled"}
SECONDS = 60
LONG = "Tell me a long story. " * 40

client = openai.OpenAI(timeout=SECONDS)


def lines(count: int, **more: Any) -> bytes:
    """The input of a batch of chats."""
    rows = []
    for number in range(count):
        turns = [{"role": "user", "content": f"Say {number}."}]
        body = {"model": GPT, "messages": turns, **more}
        rows.append({"custom_id": f"c{number}", "method": "POST", "url": CHAT, "body": body})
    return "\n".join(map(json.dumps, rows)).encode()


def begin(content: bytes, endpoint: Any = CHAT, **more: Any) -> Any:
    """Upload a batch's input and start the batch."""
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    client.files.wait_for_processing(file.id, poll_interval=0.1, max_wait_seconds=SECONDS)
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more
    )


def wait(look: Callable[[], Any], ends: set[str]) -> Any:
    """Look until a status is one of these."""
    deadline = time.monotonic() + SECONDS
    while (seen := look()).status not in ends and time.monotonic() < deadline:
        time.sleep(0.1)
    return seen


def finish(batch: Any) -> Any:
    """Wait for the end of a batch."""
    return wait(lambda: client.batches.retrieve(batch.id), ENDS)


def rows(file_id: str | None) -> list[Any]:
    """The lines of a batch's file."""
    if file_id is None:
        return []
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def models() -> Any:
    listed = {model.id for model in client.models.list()}
    return {"listed": {GPT, EMBEDDING} <= listed, "one": client.models.retrieve(GPT).id}


def files() -> Any:
    made = [
        client.files.create(file=io.BytesIO(b"one\n"), purpose="user_data"),
        client.files.create(
            file=("b.jsonl", lines(1), "application/octet-stream"), purpose="batch"
        ),
        client.files.create(
            file=("c.txt", b"three\r\n"),
            purpose="user_data",
            expires_after={"anchor": "created_at", "seconds": 3_600},
        ),
    ]
    processed = [client.files.wait_for_processing(file.id, poll_interval=0.1) for file in made]
    ids = [file.id for file in made]
    listed = [file.id for file in client.files.list(limit=1) if file.id in ids]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "content"
        with client.files.with_streaming_response.content(ids[1]) as response:
            response.stream_to_file(path)
        streamed = path.read_bytes() == lines(1)
    raw = client.files.with_raw_response.retrieve(ids[2])
    deleted = client.files.delete(ids[0])
    gone = None
    try:
        client.files.retrieve(ids[0])
    except openai.NotFoundError as error:
        gone = error.status_code
    return {
        "statuses": [file.status for file in processed],
        "bytes": [file.bytes for file in made],
        "newest_first": listed == ids[::-1],
        "of_purpose": ids[1] in [file.id for file in client.files.list(purpose="batch")],
        "content": client.files.content(ids[2]).content.decode(),
        "streamed": streamed,
        "lives": (made[2].expires_at or 0) - made[2].created_at,
        "raw": raw.parse().filename,
        "deleted": deleted.deleted,
        "gone": gone,
    }


def batches() -> Any:
    batch = begin(lines(3), metadata={"night": "3"})
    ended = finish(batch)
    other = finish(begin(lines(1)))
    out = rows(ended.output_file_id)
    listed = [one.id for one in client.batches.list(limit=1) if one.id in {batch.id, other.id}]
    return {
        "begun": batch.status,
        "counted_from_the_start": batch.request_counts is not None,
        "status": ended.status,
        "counts": ended.request_counts.to_dict(),
        "metadata": ended.metadata,
        "ids": sorted(row["custom_id"] for row in out),
        "texts": [row["response"]["body"]["choices"][0]["message"]["content"] for row in out],
        "error_file": ended.error_file_id,
        "times": [ended.in_progress_at, ended.finalizing_at, ended.completed_at].count(None),
        "newest_first": listed == [other.id, batch.id],
    }


def failed_batches() -> Any:
    refused = []
    for wrong in ({"input_file_id": "file-no"}, {"endpoint": "/v1/no"}):
        given: Any = {"input_file_id": "file-no", "endpoint": CHAT, **wrong}
        try:
            client.batches.create(completion_window="24h", **given)
        except openai.APIStatusError as error:
            refused.append(error.status_code)
    twice = finish(begin(lines(1) + b"\n" + lines(1)))
    streamed = finish(begin(lines(1, stream=True)))
    other = finish(begin(lines(1), "/v1/embeddings"))
    return {
        "refused": refused,
        "statuses": [twice.status, streamed.status, other.status],
        "lines": [one.errors.data[0].line for one in (twice, streamed, other)],
        "output_files": [one.output_file_id for one in (twice, streamed, other)],
        "counts": twice.request_counts.to_dict(),
        "metadata": twice.metadata,
    }


def other_batches() -> Any:
    ask = {"model": EMBEDDING, "input": "Hi", "encoding_format": "base64"}
    line = {"custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": ask}
    vectors = rows(finish(begin(json.dumps(line).encode(), "/v1/embeddings")).output_file_id)
    ask = {"model": GPT, "input": "Hi"}
    line = {"custom_id": "r", "method": "POST", "url": "/v1/responses", "body": ask}
    answers = rows(finish(begin(json.dumps(line).encode(), "/v1/responses")).output_file_id)
    return {
        "vector": type(vectors[0]["response"]["body"]["data"][0]["embedding"]).__name__,
        "response": answers[0]["response"]["body"]["output"][0]["content"][0]["text"],
    }


def cancelled_batches() -> Any:
    batch = begin(lines(200))
    wait(lambda: client.batches.retrieve(batch.id), ENDS | {"in_progress"})
    stopping = client.batches.cancel(batch.id)
    ended = finish(batch)
    done, left = rows(ended.output_file_id), rows(ended.error_file_id)
    counts = ended.request_counts
    return {
        "stopping": stopping.status,
        "cancelling_at": stopping.cancelling_at is not None,
        "status": ended.status,
        "rows": len(done + left),
        "lines": len({row["custom_id"] for row in done + left}),
        "counts_add_up": counts.to_dict()
        == {"total": 200, "completed": len(done), "failed": len(left)},
        "codes": sorted({row["error"]["code"] for row in left}),
    }


def embeddings() -> Any:
    default = client.embeddings.create(model=EMBEDDING, input=["Hi", "Ho"])
    single = client.embeddings.create(model=EMBEDDING, input="Hi", encoding_format="float")
    short = client.embeddings.create(model=EMBEDDING, input="Hi", dimensions=8)
    tokens: Any = [[13347], [6, 7]]
    of_tokens: Any
    try:
        of_tokens = len(client.embeddings.create(model=EMBEDDING, input=tokens).data)
    except openai.BadRequestError as error:
        of_tokens = error.message
    same = zip(default.data[0].embedding, single.data[0].embedding, strict=True)
    return {
        "count": len(default.data),
        "same": all(abs(one - other) < 1e-6 for one, other in same),
        "dimensions": [len(single.data[0].embedding), len(short.data[0].embedding)],
        "tokens": single.usage.total_tokens,
        "of_tokens": of_tokens,
    }


def chat() -> Any:
    turns: Any = [{"role": "user", "content": "Say 1."}]
    answer = client.chat.completions.create(model=GPT, messages=turns)
    chunks = list(
        client.chat.completions.create(
            model=GPT, messages=turns, stream=True, stream_options={"include_usage": True}
        )
    )
    parts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    flex = client.chat.completions.create(model=GPT, messages=turns, service_tier="flex")
    return {
        "text": answer.choices[0].message.content,
        "finish": answer.choices[0].finish_reason,
        "tokens": answer.usage.total_tokens if answer.usage else None,
        "streamed": "".join(parts) == answer.choices[0].message.content,
        "usage_last": chunks[-1].usage is not None,
        "flex": flex.choices[0].message.content == answer.choices[0].message.content,
    }


def chat_errors() -> Any:
    turns: Any = [{"role": "user", "content": "Say 1."}]
    seen = {}
    try:
        client.chat.completions.create(model="unknown-model", messages=turns)
    except openai.APIStatusError as error:
        seen["model"] = [error.status_code, error.code]
    try:
        client.chat.completions.create(model=GPT, messages="no")  # type: ignore[arg-type]
    except openai.APIStatusError as error:
        seen["messages"] = [error.status_code, error.type, error.param]
    try:
        client.with_options(api_key="sk-no").models.list()
    except openai.APIStatusError as error:
        seen["key"] = [error.status_code, error.code]
    return seen


def responses() -> Any:
    answer = client.responses.create(model=GPT, input="Say 1.", instructions="Be brief.")
    items: Any = [{"role": "user", "content": [{"type": "input_text", "text": "Say 2."}]}]
    of_items = client.responses.create(model=GPT, input=items)
    events = list(client.responses.create(model=GPT, input="Say 1.", stream=True))
    kept = client.responses.create(model=GPT, input="Say 3.", store=True)
    again = client.responses.retrieve(kept.id)
    given = [item.type for item in client.responses.input_items.list(kept.id)]
    client.responses.delete(kept.id)
    gone = None
    try:
        client.responses.retrieve(kept.id)
    except openai.NotFoundError as error:
        gone = error.status_code
    streamed = "".join(one.delta for one in events if one.type == "response.output_text.delta")
    numbers = [one.sequence_number for one in events]
    return {
        "text": answer.output_text,
        "status": answer.status,
        "tokens": answer.usage.total_tokens if answer.usage else None,
        "of_items": of_items.output_text,
        "events": [events[0].type, events[-1].type],
        "ordered": numbers == sorted(set(numbers)),
        "streamed": bool(streamed) and streamed == events[-1].response.output_text,
        "again": again.output_text == kept.output_text,
        "input_items": given,
        "gone": gone,
    }


def background() -> Any:
    begun = client.responses.create(model=GPT, input="Say 1.", background=True)
    ended = wait(lambda: client.responses.retrieve(begun.id), {"completed", "failed"})
    all_events = list(client.responses.retrieve(begun.id, stream=True))
    middle = all_events[len(all_events) // 2].sequence_number
    rest = list(client.responses.retrieve(begun.id, stream=True, starting_after=middle))
    stream = client.responses.create(model=GPT, input=LONG, background=True, stream=True)
    for first in stream:
        if first.type == "response.created":
            break
    stream.close()
    resumed = list(
        client.responses.retrieve(
            first.response.id, stream=True, starting_after=first.sequence_number
        )
    )
    slow = client.responses.create(
        model=HANGING, input="Say 2.", background=True, service_tier="flex"
    )
    stopped = client.responses.cancel(slow.id)
    final = wait(lambda: client.responses.retrieve(slow.id), {"completed", "cancelled"})
    return {
        "begun": begun.status,
        "status": ended.status,
        "text": ended.output_text,
        "rest": [one.sequence_number for one in rest]
        == [one.sequence_number for one in all_events if one.sequence_number > middle],
        "ends": [all_events[-1].type, rest[-1].type, resumed[-1].type],
        "resumed": resumed[0].sequence_number > first.sequence_number,
        "stopped": stopped.status,
        "final": final.status,
    }


if __name__ == "__main__":
    report(
        "openai",
        *(models, files, batches, failed_batches, other_batches, cancelled_batches),
        *(embeddings, chat, chat_errors, responses, background),
    )
