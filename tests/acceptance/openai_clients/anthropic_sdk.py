"""Drives Anthropic's own Python client, and prints what it saw."""

import time
from typing import Any

import anthropic
from seen import report

CLAUDE = "claude-haiku-4-5"
SECONDS = 60

client = anthropic.Anthropic(timeout=SECONDS)


def ask(text: str) -> Any:
    return {"model": CLAUDE, "max_tokens": 50, "messages": [{"role": "user", "content": text}]}


def wait(batch: Any) -> Any:
    deadline = time.monotonic() + SECONDS
    while batch.processing_status != "ended" and time.monotonic() < deadline:
        time.sleep(0.1)
        batch = client.messages.batches.retrieve(batch.id)
    return batch


def messages() -> Any:
    answer = client.messages.create(**ask("Say 1."), system="Be brief.")
    with client.messages.stream(**ask("Say 1.")) as stream:
        streamed = "".join(stream.text_stream)
        last = stream.get_final_message()
    return {
        "text": answer.content[0].text,
        "stop": answer.stop_reason,
        "tokens": answer.usage.output_tokens > 0,
        "streamed": bool(streamed) and streamed == last.content[0].text,
    }


def batches() -> Any:
    requests: Any = [{"custom_id": f"c{n}", "params": ask(f"Say {n}.")} for n in range(3)]
    batch = client.messages.batches.create(requests=requests)
    ended = wait(batch)
    results = {row.custom_id: row.result for row in client.messages.batches.results(batch.id)}
    other = client.messages.batches.create(requests=requests[:1])
    listed = [one.id for one in client.messages.batches.list(limit=1)]
    return {
        "begun": batch.processing_status,
        "status": ended.processing_status,
        "counts": ended.request_counts.to_dict(),
        "ids": sorted(results),
        "texts": sorted(one.message.content[0].text for one in results.values()),
        "newest_first": listed[:2] == [other.id, batch.id],
    }


def cancelled_batches() -> Any:
    requests: Any = [{"custom_id": f"c{n}", "params": ask(f"Say {n}.")} for n in range(200)]
    batch = client.messages.batches.create(requests=requests)
    stopping = client.messages.batches.cancel(batch.id)
    ended = wait(batch)
    results = list(client.messages.batches.results(batch.id))
    client.messages.batches.delete(batch.id)
    gone = None
    try:
        client.messages.batches.retrieve(batch.id)
    except anthropic.NotFoundError as error:
        gone = error.body["error"]["type"]  # type: ignore[index]
    return {
        "stopping": stopping.processing_status,
        "status": ended.processing_status,
        "lines": len({row.custom_id for row in results}),
        "counted": sum(ended.request_counts.to_dict().values()),  # type: ignore[arg-type]
        "types": sorted({row.result.type for row in results} - {"succeeded"}),
        "gone": gone,
    }


if __name__ == "__main__":
    report("anthropic", messages, batches, cancelled_batches)
