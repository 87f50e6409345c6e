"""What a batch of a file would cost, before it is made."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from promptstack.tasks.worker_services import WorkerServices
from tests.batches import chat, embedding, jsonl
from tests.http import serve
from tests.runs import in_ledger

GPT: dict[str, Any] = {"model": "openai/gpt-4o-mini", "max_tokens": 100}


@pytest.fixture
def client(stack: WorkerServices) -> Iterator[TestClient]:
    with serve(stack) as opened:
        yield opened


def estimated(client: TestClient, lines: list[Any], purpose: str = "batch") -> Any:
    file = ("in.jsonl", jsonl(lines))
    made = client.post("/openai/v1/files", data={"purpose": purpose}, files={"file": file})
    return client.get(f"/openai/v1/files/{made.json()['id']}/cost-estimate")


def test_a_file_is_estimated_and_nothing_is_kept(client: TestClient, stack: WorkerServices) -> None:
    lines = [chat("a", "x" * 4_000, **GPT), chat("b", "y" * 4_000, **GPT)]
    body = estimated(client, [*lines, chat("c", "y" * 4_000, **GPT)]).json()
    assert (body["lines"], body["invalid_lines"], body["paid_requests"]) == (3, 0, 2)
    assert (body["endpoint"], body["errors"]) == ("/v1/chat/completions", None)
    assert 2_000 <= body["input_tokens"] <= 2_100
    assert body["max_output_tokens"] == 200
    assert 0 < body["cost_usd"] < 0.01
    [one] = body["models"]
    assert (one["provider"], one["model"]) == ("openai", "gpt-4o-mini")
    assert one["cost_usd"] == body["cost_usd"]
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 0
    assert in_ledger(stack, "SELECT count(*) FROM items") == 0


def test_what_would_fail_the_batch_is_said(client: TestClient) -> None:
    body = estimated(client, [embedding("a", "x" * 400), "{", embedding("a", "y")]).json()
    assert (body["lines"], body["invalid_lines"], body["paid_requests"]) == (3, 2, 1)
    assert [(one["line"], one["code"]) for one in body["errors"]["data"]] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
    ]
    assert (body["max_output_tokens"], body["cost_usd"]) == (0, 0)


@pytest.mark.parametrize(
    ("lines", "purpose", "why"),
    [
        ([chat("a", "x")], "user_data", "purpose batch"),
        (["{", "[]"], "batch", "names a model"),
        ([chat("a", "x", model="nobody/any")], "batch", "nobody"),
        ([{**chat("a", "x"), "url": "/v1/completions"}], "batch", "one of /v1/chat"),
        ([chat(f"{n}", "x") for n in range(3)], "batch", "more than 2"),
    ],
    ids=["purpose", "no request", "model", "endpoint", "lines"],
)
def test_a_file_that_is_no_batchs_is_a_400_in_words(
    client: TestClient, stack: WorkerServices, lines: list[Any], purpose: str, why: str
) -> None:
    stack.settings.max_batch_lines = 2
    refused = estimated(client, lines, purpose)
    assert refused.status_code == 400
    assert why in refused.json()["error"]["message"]


def test_the_file_of_nobody_is_a_404(client: TestClient) -> None:
    assert client.get(f"/openai/v1/files/file-{'0' * 32}/cost-estimate").status_code == 404
