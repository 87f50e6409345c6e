"""What tests of batches make and look at."""

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from promptstack.services.batches.views import BatchView
from promptstack.tasks.composition import PromptStack
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute
from tests.runs import work

EMBEDDINGS, CHAT, RESPONSES = "/v1/embeddings", "/v1/chat/completions", "/v1/responses"


def embedding(custom_id: str, text: str, **body: Any) -> dict[str, Any]:
    body = {"model": "local/wordllama-256", "input": text, **body}
    return {"custom_id": custom_id, "method": "POST", "url": EMBEDDINGS, "body": body}


def chat(custom_id: str, text: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    body = {"model": "demo/demo-1", "messages": messages, **body}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def jsonl(lines: Iterable[Mapping[str, Any] | str]) -> bytes:
    written = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    return "".join(f"{line}\n" for line in written).encode()


def upload(stack: PromptStack, user_id: UUID, content: bytes, purpose: str = "batch") -> UUID:
    return stack.files.create(
        io.BytesIO(content), filename="in.jsonl", purpose=purpose, user_id=user_id
    ).id


def batch_of(
    stack: PromptStack,
    user_id: UUID,
    lines: Iterable[Mapping[str, Any] | str],
    endpoint: str = CHAT,
    window: str = "24h",
    **how: Any,
) -> BatchView:
    """A new batch of these lines."""
    file_id = upload(stack, user_id, jsonl(lines))
    owner: dict[str, Any] = {"user_id": user_id, "api_key_id": None, "key_limits": None}
    return stack.batches.create(file_id, endpoint, window, **{**owner, **how})


def take_in(stack: WorkerServices, batch: BatchView) -> BatchView:
    """Do what a worker does with the file of a batch."""
    with stack.ledger.transaction() as unit:
        found = unit.batches.get(batch.id)
    assert found is not None
    execute(stack, found.job_id)
    return stack.batches.get(batch.id)


def settle(stack: WorkerServices, batch: BatchView) -> BatchView:
    """Do what the upkeep of a worker does."""
    stack.batch_endings.run_once()
    return stack.batches.get(batch.id)


def done(stack: WorkerServices, batch: BatchView) -> BatchView:
    """Do a batch to its end."""
    begun = take_in(stack, batch)
    if begun.run_id is not None and begun.ended_at is None:
        work(stack, begun.run_id)
    return settle(stack, batch)


def part(stack: PromptStack, file_id: UUID | None) -> list[dict[str, Any]]:
    """The lines of an output; none where there is no such file."""
    if file_id is None:
        return []
    content = b"".join(stack.files.open(file_id, None))
    return [json.loads(line) for line in content.splitlines()]


def outputs(stack: PromptStack, batch: BatchView) -> tuple[list[Any], list[Any]]:
    """The lines of both outputs."""
    return part(stack, batch.output_file_id), part(stack, batch.error_file_id)
