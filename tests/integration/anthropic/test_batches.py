"""Message batches as Anthropic's own client makes, sees, cancels and reads them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network
from threading import Barrier
from typing import Any
from uuid import UUID

import anthropic
import pytest

from promptstack.api.http.openai.ids import read_wire_id
from promptstack.repositories.files import FileRepository
from promptstack.services.batches.views import BatchView
from promptstack.tasks.worker_services import WorkerServices
from tests.batches import done, settle, take_in
from tests.http import live_server
from tests.processes import PATIENCE
from tests.runs import in_ledger

PARAMS: dict[str, Any] = {
    "model": "demo/demo-1",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "Hello."}],
}


@pytest.fixture
def sdk(stack: WorkerServices) -> Iterator[anthropic.Anthropic]:
    key = stack.keys.create("ada@example.org", "Test")
    with (
        live_server(stack) as (_, url),
        anthropic.Anthropic(
            base_url=f"{url}/anthropic", api_key=key, max_retries=0, timeout=60
        ) as client,
    ):
        yield client


def request(custom_id: str, **params: Any) -> Any:
    return {"custom_id": custom_id, "params": {**PARAMS, **params}}


def made(stack: WorkerServices, batch_id: str) -> BatchView:
    return stack.batches.get(read_wire_id("msgbatch_", batch_id, "batch"))


def test_a_batch_is_made_and_read(stack: WorkerServices, sdk: anthropic.Anthropic) -> None:
    schema = {"format": {"type": "json_schema", "schema": {"type": "integer"}}}
    batch = sdk.messages.batches.create(
        requests=[
            request("a", system="Be kind."),
            request("b", output_config=schema),  # which the demonstration doesn't do
            request("c"),
        ]
    )
    assert batch.id.startswith("msgbatch_")
    assert (batch.type, batch.processing_status) == ("message_batch", "in_progress")
    assert (batch.results_url, batch.ended_at) == (None, None)
    assert batch.request_counts.processing == 3
    with pytest.raises(anthropic.AnthropicError):
        sdk.messages.batches.results(batch.id)
    done(stack, made(stack, batch.id))
    batch = sdk.messages.batches.retrieve(batch.id)
    assert batch.processing_status == "ended"
    counts = batch.request_counts
    results = {one.custom_id: one.result for one in sdk.messages.batches.results(batch.id)}
    assert set(results) == {"a", "b", "c"}
    sums = {kind: sum(one.type == kind for one in results.values()) for kind in ("succeeded",)}
    assert counts.succeeded == sums["succeeded"] >= 2
    assert counts.succeeded + counts.errored == 3
    assert (counts.processing, counts.canceled, counts.expired) == (0, 0, 0)
    for result in results.values():
        if result.type == "succeeded":
            assert result.message.content[0].type == "text"
            assert result.message.stop_reason == "end_turn"
        else:
            assert result.type == "errored"
            assert result.error.error.message


def test_a_cancelled_batch_has_a_line_for_each_request(
    stack: WorkerServices, sdk: anthropic.Anthropic
) -> None:
    batch = sdk.messages.batches.create(requests=[request("a"), request("b")])
    take_in(stack, made(stack, batch.id))
    cancelled = sdk.messages.batches.cancel(batch.id)
    assert cancelled.processing_status == "canceling"
    assert cancelled.cancel_initiated_at is not None
    settle(stack, made(stack, batch.id))
    batch = sdk.messages.batches.retrieve(batch.id)
    assert (batch.processing_status, batch.request_counts.canceled) == ("ended", 2)
    results = list(sdk.messages.batches.results(batch.id))
    assert {(one.custom_id, one.result.type) for one in results} == {
        ("a", "canceled"),
        ("b", "canceled"),
    }


def test_an_ended_batch_is_deleted_with_all_that_is_its_own(
    stack: WorkerServices, sdk: anthropic.Anthropic
) -> None:
    batch = sdk.messages.batches.create(requests=[request("a")])
    found = made(stack, batch.id)
    again = sdk.messages.batches.create(
        requests=[request("a")], extra_headers={"Idempotency-Key": "another"}
    )
    other = sdk.with_options(api_key=stack.keys.create("eve@example.org", "Test"))
    with pytest.raises(anthropic.NotFoundError):
        other.messages.batches.delete(batch.id)
    with pytest.raises(anthropic.ConflictError, match="cancel it"):
        sdk.messages.batches.delete(batch.id)
    done(stack, found)
    gone = sdk.messages.batches.delete(batch.id)
    assert (gone.id, gone.type) == (batch.id, "message_batch_deleted")
    with pytest.raises(anthropic.NotFoundError):
        sdk.messages.batches.retrieve(batch.id)
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 0
    files = "SELECT count(*) FROM files WHERE deleted_at IS NULL"
    assert in_ledger(stack, files) == 1  # the other batch has the same requests
    done(stack, made(stack, again.id))
    sdk.messages.batches.delete(again.id)
    assert in_ledger(stack, files) == 0


@pytest.mark.parametrize("proxies", [["127.0.0.1/32"], []], ids=["trusted", "untrusted"])
def test_results_are_where_the_client_reaches_the_server(
    stack: WorkerServices, sdk: anthropic.Anthropic, proxies: list[str]
) -> None:
    """Else it would send its key in clear to the port behind the proxy."""
    stack.settings.trusted_proxies = [IPv4Network(one) for one in proxies]
    batch = sdk.messages.batches.create(requests=[request("a")])
    done(stack, made(stack, batch.id))
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "api.example.org"}
    seen = sdk.messages.batches.retrieve(batch.id, extra_headers=headers)
    known = "https://api.example.org" if proxies else str(sdk.base_url).split("/anthropic")[0]
    assert seen.results_url == f"{known}/anthropic/v1/messages/batches/{batch.id}/results"


def test_a_list_has_pages_and_no_batches_of_others(
    stack: WorkerServices, sdk: anthropic.Anthropic
) -> None:
    ids = [sdk.messages.batches.create(requests=[request(one)]).id for one in "abc"]
    assert [one.id for one in sdk.messages.batches.list(limit=2)] == ids[::-1]
    other = sdk.with_options(api_key=stack.keys.create("eve@example.org", "Test"))
    assert list(other.messages.batches.list()) == []
    with pytest.raises(anthropic.NotFoundError):
        other.messages.batches.retrieve(ids[0])


def test_a_request_that_is_sent_again_makes_one_batch(
    stack: WorkerServices, sdk: anthropic.Anthropic
) -> None:
    """The client sends it twice more where it misses the answer, and no key with it."""
    first = sdk.messages.batches.create(requests=[request("a")])
    assert sdk.messages.batches.create(requests=[request("a")]).id == first.id
    assert sdk.messages.batches.create(requests=[request("b")]).id != first.id
    headers = {"Idempotency-Key": "mine"}
    kept = sdk.messages.batches.create(requests=[request("a")], extra_headers=headers)
    assert kept.id != first.id
    again = sdk.messages.batches.create(requests=[request("a")], extra_headers=headers)
    assert again.id == kept.id
    files = {made(stack, one.id).input_file_id for one in (first, kept)}
    assert len(files) == 1


@pytest.mark.parametrize(
    ("requests", "why"),
    [
        ([], "requests"),
        ([request("a"), request("b", model="demo/other")], "same model"),
        ([request("a", stream=True)], r"requests\[0\].params.stream"),
        ([request("a", top_k=5)], "top_k"),
        ([{"custom_id": "a"}], r"requests\[0\].params"),
        ([request("a"), request("a")], r"requests\[1\].custom_id"),
        ([request("a\0")], r"requests\[0\].custom_id"),
        ([request("a", max_tokens=0)], r"requests\[0\].params.max_tokens"),
        ([request("a", messages=[{"role": "tool", "content": "x"}])], r"messages\[0\].role"),
    ],
    ids=[
        "none",
        "two models",
        "stream",
        "an option",
        "no params",
        "an id twice",
        "an id",
        "tokens",
        "a role",
    ],
)
def test_what_is_wrong_with_a_request_is_said(
    sdk: anthropic.Anthropic, requests: list[Any], why: str
) -> None:
    with pytest.raises(anthropic.BadRequestError, match=why):
        sdk.messages.batches.create(requests=requests)


def test_a_batch_of_too_many_requests_is_refused_at_once(
    stack: WorkerServices, sdk: anthropic.Anthropic
) -> None:
    stack.settings.max_batch_lines = 2
    with pytest.raises(anthropic.BadRequestError, match="at most 2 requests"):
        sdk.messages.batches.create(requests=[request(one) for one in "abc"])


def test_a_batch_that_is_sent_twice_at_once_is_one(
    stack: WorkerServices, sdk: anthropic.Anthropic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a client does that takes the first for lost while it is still being stored."""
    both, lock = Barrier(2, timeout=PATIENCE), FileRepository.lock_sums

    def lock_together(files: FileRepository, user_id: UUID) -> None:
        both.wait()
        lock(files, user_id)

    monkeypatch.setattr(FileRepository, "lock_sums", lock_together)
    with ThreadPoolExecutor(2) as pool:
        sent = [pool.submit(sdk.messages.batches.create, requests=[request("a")]) for _ in range(2)]
        first, second = (one.result(PATIENCE) for one in sent)
    assert first.id == second.id
