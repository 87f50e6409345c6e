"""Batches as OpenAI's own client makes, sees, cancels and retries them."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import openai
import pytest
from openai import OpenAI
from openai.types import Batch

from promptstack.api.http.openai.ids import read_wire_id, wire_id
from promptstack.services.access.users import UserView
from promptstack.services.errors import NotFound
from promptstack.tasks.worker_services import WorkerServices
from tests.batches import batch_of, chat, done, jsonl, settle, take_in, upload
from tests.http import live_server
from tests.jobs import another, sql
from tests.webhooks import receiver, send_all

ENDS = ("completed", "failed", "expired", "cancelled")
TIMES = tuple(f"{end}_at" for end in ENDS)
DAY: Any = "24h"


@pytest.fixture
def sdk(stack: WorkerServices) -> Iterator[OpenAI]:
    key = stack.keys.create("ada@example.org", "Test")
    with (
        live_server(stack) as (_, url),
        OpenAI(base_url=f"{url}/openai/v1", api_key=key, max_retries=0) as client,
    ):
        yield client


@pytest.fixture
def ada(stack: WorkerServices, sdk: OpenAI) -> UUID:
    """Whose key the client has."""
    with stack.ledger.transaction() as unit:
        user = unit.users.get_by_email("ada@example.org")
        assert user is not None
        return user.id


def uploaded(stack: WorkerServices, user_id: UUID, lines: list[Any]) -> str:
    return wire_id("file-", upload(stack, user_id, jsonl(lines)))


def made(stack: WorkerServices, batch: Batch) -> Any:
    return stack.batches.get(read_wire_id("batch_", batch.id, "batch"))


def ends(batch: Batch) -> list[str]:
    return [name for name in TIMES if getattr(batch, name) is not None]


def test_a_batch_is_made_and_seen_to_its_end(stack: WorkerServices, sdk: OpenAI, ada: UUID) -> None:
    file_id = uploaded(stack, ada, [chat("a", "Hello."), chat("b", "Well.")])
    batch = sdk.batches.create(
        input_file_id=file_id,
        endpoint="/v1/chat/completions",
        completion_window=DAY,
        metadata={"who": "ada"},
        extra_body={"something": "new"},
    )
    assert (batch.object, batch.status, batch.completion_window) == ("batch", "validating", "24h")
    assert (batch.input_file_id, batch.metadata) == (file_id, {"who": "ada"})
    assert batch.request_counts is not None
    assert batch.request_counts.total == 0
    assert (batch.errors, batch.output_file_id, batch.error_file_id) == (None, None, None)
    assert batch.expires_at == batch.created_at + 86_400
    assert sdk.batches.retrieve(batch.id) == batch
    begun = take_in(stack, made(stack, batch))
    batch = sdk.batches.retrieve(batch.id)
    assert (batch.status, batch.model) == ("in_progress", "demo-1")
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    done(stack, begun)
    batch = sdk.batches.retrieve(batch.id)
    assert batch.status == "completed"
    assert ends(batch) == ["completed_at"]
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (2, 2, 0)
    assert batch.error_file_id is None
    assert batch.usage is not None
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens


def test_a_file_that_is_not_valid_fails_the_batch_with_a_list_of_errors(
    stack: WorkerServices, sdk: OpenAI, ada: UUID
) -> None:
    file_id = uploaded(stack, ada, [chat("a", "x"), "{"])
    batch = sdk.batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window=DAY
    )
    take_in(stack, made(stack, batch))
    batch = sdk.batches.retrieve(batch.id)
    assert (batch.status, ends(batch)) == ("failed", ["failed_at"])
    assert batch.errors is not None
    assert batch.errors.object == "list"
    assert batch.errors.data is not None
    [error] = batch.errors.data
    assert (error.code, error.line, error.param) == ("invalid_json_line", 2, None)


def test_a_batch_is_cancelled_and_goes_on_when_retried(
    stack: WorkerServices, sdk: OpenAI, ada: UUID
) -> None:
    file_id = uploaded(stack, ada, [chat("a", "x")])
    batch = sdk.batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window=DAY
    )
    take_in(stack, made(stack, batch))
    cancelled = sdk.batches.cancel(batch.id)
    assert cancelled.status == "cancelling"
    assert cancelled.cancelling_at is not None
    assert sdk.batches.cancel(batch.id) == cancelled
    settle(stack, made(stack, batch))
    cancelled = sdk.batches.retrieve(batch.id)
    assert (cancelled.status, ends(cancelled)) == ("cancelled", ["cancelled_at"])
    assert cancelled.request_counts is not None
    assert cancelled.request_counts.failed == 1
    again = sdk.post(f"/batches/{batch.id}/retry", cast_to=Batch)
    assert (again.status, again.cancelling_at, ends(again)) == ("in_progress", None, [])
    done(stack, made(stack, batch))
    assert sdk.batches.retrieve(batch.id).status == "completed"
    with pytest.raises(openai.ConflictError):
        sdk.batches.cancel(batch.id)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_file_id", "file-" + "0" * 32),
        ("input_file_id", "file-unknown"),
        ("input_file_id", ""),
        ("endpoint", "/v1/completions"),
        ("completion_window", "soon"),
        ("metadata", {f"{n}": "x" for n in range(17)}),
        ("metadata", {"n": "x" * 513}),
        ("output_expires_after", {"anchor": "created_at", "seconds": 3_599}),
    ],
    ids=["no file", "no id", "empty", "endpoint", "window", "pairs", "value", "kept"],
)
def test_what_a_batch_cannot_be_made_of_is_a_400(
    stack: WorkerServices, sdk: OpenAI, ada: UUID, field: str, value: Any
) -> None:
    file_id = uploaded(stack, ada, [chat("a", "x")])
    asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions"}
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.post(
            "/batches", cast_to=Batch, body={**asked, "completion_window": "24h", field: value}
        )
    assert (caught.value.param or "").partition(".")[0] == field


def test_a_request_that_is_sent_again_makes_one_batch(
    stack: WorkerServices, sdk: OpenAI, ada: UUID
) -> None:
    file_id = uploaded(stack, ada, [chat("a", "x")])
    asked: Any = {
        "input_file_id": file_id,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    first = sdk.batches.create(**asked)
    assert sdk.batches.create(**asked).id == first.id
    keyed: Any = {**asked, "extra_headers": {"Idempotency-Key": "one"}}
    second = sdk.batches.create(**keyed)
    assert second.id != first.id
    assert sdk.batches.create(**keyed).id == second.id
    with pytest.raises(openai.ConflictError):
        sdk.batches.create(**{**keyed, "completion_window": "1h"})


def test_an_output_without_lines_is_not_listed(
    stack: WorkerServices, sdk: OpenAI, ada: UUID
) -> None:
    batch = batch_of(stack, ada, [chat("a", "x")])
    assert len(list(sdk.files.list(purpose="batch_output"))) == 0
    take_in(stack, batch)
    assert len(list(sdk.files.list(purpose="batch_output"))) == 2
    ended = done(stack, batch)
    assert ended.output_file_id is not None
    listed = [file.id for file in sdk.files.list(purpose="batch_output")]
    assert listed == [wire_id("file-", ended.output_file_id)]


def test_lists_are_newest_first_and_end(stack: WorkerServices, sdk: OpenAI, ada: UUID) -> None:
    made_ = [wire_id("batch_", batch_of(stack, ada, [chat("a", f"{n}")]).id) for n in range(5)]
    batch_of(stack, stack.users.create("bob@example.org").id, [chat("a", "x")])
    assert [batch.id for batch in sdk.batches.list(limit=2)] == made_[::-1]
    page = sdk.batches.list(limit=2, after=made_[3])
    assert [batch.id for batch in page.data] == [made_[2], made_[1]]
    assert page.has_more
    body: Any = sdk.get("/batches", cast_to=object)
    assert (body["object"], body["has_more"]) == ("list", False)
    assert (body["first_id"], body["last_id"]) == (made_[4], made_[0])
    with pytest.raises(openai.BadRequestError):
        sdk.batches.list(limit=101)


def test_a_batch_of_another_user_is_not_there(stack: WorkerServices, sdk: OpenAI) -> None:
    other = stack.users.create("bob@example.org")
    batch_id = wire_id("batch_", batch_of(stack, other.id, [chat("a", "x")]).id)
    for ask in (sdk.batches.retrieve, sdk.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            ask(batch_id)
    with pytest.raises(openai.NotFoundError):
        sdk.post(f"/batches/{batch_id}/retry", cast_to=object)
    with pytest.raises(openai.NotFoundError):
        sdk.batches.retrieve("batch_none")
    with pytest.raises(NotFound):
        read_wire_id("batch_", "batch_none", "batch")


def test_each_end_is_told_as_openais_client_reads_it(
    stack: WorkerServices, test_user: UserView
) -> None:
    """The id that an event names is the one that the door shows."""
    line = chat("a", "x")
    with another(stack, webhook_allowed_hosts=["127.0.0.1"]) as sending, receiver() as served:
        secret = sending.webhooks.create(
            served.url, [f"batch.{end}" for end in ENDS], user_id=test_user.id
        ).secret
        ended = {
            "batch.completed": done(sending, batch_of(sending, test_user.id, [line])),
            "batch.failed": take_in(sending, batch_of(sending, test_user.id, ["{"])),
        }
        cancelled = batch_of(sending, test_user.id, [line])
        sending.batches.cancel(cancelled.id)
        ended["batch.cancelled"] = done(sending, cancelled)
        expired = batch_of(sending, test_user.id, [line])
        sql(sending, "UPDATE jobs SET expires_at = now() WHERE state = 'queued'")
        sending.liveness.run_once()
        ended["batch.expired"] = settle(sending, expired)
        send_all(sending)
        events = [
            OpenAI(api_key="none").webhooks.unwrap(got.raw, got.headers, secret=secret)
            for got in served.taken
        ]
    told: dict[str, Any] = {event.type: event.data for event in events}
    assert {kind: data.id for kind, data in told.items()} == {
        kind: wire_id("batch_", batch.id) for kind, batch in ended.items()
    }


def test_a_line_that_goes_on_an_answer_which_is_not_sent_along_is_refused(
    stack: WorkerServices, sdk: OpenAI, ada: UUID
) -> None:
    body = {"model": "demo-1", "input": "And then?", "previous_response_id": "resp_x"}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body}
    batch = sdk.batches.create(
        input_file_id=uploaded(stack, ada, [line]),
        endpoint="/v1/responses",
        completion_window=DAY,
    )
    take_in(stack, made(stack, batch))
    batch = sdk.batches.retrieve(batch.id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    [error] = batch.errors.data
    assert error.line == 1
    assert "previous_response_id" in (error.message or "")
