"""Drives litellm's client: files, batches and single calls."""

import json
import os
import time
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm
from seen import report

SECONDS = 60
CHAT = "/v1/chat/completions"
WHERE: dict[str, Any] = {
    "custom_llm_provider": "openai",
    "api_base": os.environ["OPENAI_BASE_URL"],
    "api_key": os.environ["OPENAI_API_KEY"],
}
CALL: dict[str, Any] = {"api_base": WHERE["api_base"], "api_key": WHERE["api_key"]}


def batches() -> Any:
    rows = []
    for number in range(3):
        body = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": f"Say {number}."}]}
        rows.append({"custom_id": f"c{number}", "method": "POST", "url": CHAT, "body": body})
    content = "\n".join(map(json.dumps, rows)).encode()
    file: Any = litellm.create_file(file=("in.jsonl", content), purpose="batch", **WHERE)
    batch: Any = litellm.create_batch(
        completion_window="24h", endpoint=CHAT, input_file_id=file.id, metadata={"a": "b"}, **WHERE
    )
    deadline = time.monotonic() + SECONDS
    ended: Any = batch
    while ended.status != "completed" and time.monotonic() < deadline:
        time.sleep(0.2)
        ended = litellm.retrieve_batch(batch_id=batch.id, **WHERE)
    answer: Any = litellm.file_content(file_id=ended.output_file_id, **WHERE)
    out = [json.loads(line) for line in answer.content.splitlines()]
    listed: Any = litellm.list_batches(limit=5, **WHERE)
    return {
        "status": ended.status,
        "metadata": ended.metadata,
        "ids": sorted(row["custom_id"] for row in out),
        "error_file": ended.error_file_id,
        "listed": batch.id in [one.id for one in listed.data],
    }


def calls() -> Any:
    turns = [{"role": "user", "content": "Say 1."}]
    answer: Any = litellm.completion(model="openai/gpt-5-mini", messages=turns, **CALL)
    chunks: Any = litellm.completion(model="openai/gpt-5-mini", messages=turns, stream=True, **CALL)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    vectors: Any = litellm.embedding(
        model="openai/text-embedding-3-small", input=["Hi", "Ho"], **CALL
    )
    text = answer.choices[0].message.content
    return {
        "text": text,
        "streamed": streamed == text,
        "dimensions": [len(one["embedding"]) for one in vectors.data],
    }


if __name__ == "__main__":
    report("litellm", batches, calls)
