"""Batches from their making to their end, without a worker process."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from promptstack.repositories.models import new_id
from promptstack.repositories.run_models import RunState
from promptstack.services.access.users import UserView
from promptstack.services.batches import endings
from promptstack.services.batches.views import BatchCounts, BatchStatus, BatchView
from promptstack.services.errors import InvalidInput, NotFound, NotPermitted, NotYet, WrongState
from promptstack.services.limiter.terms import Limits
from promptstack.services.llm.errors import InvalidProviderRequest, QuotaExhausted
from promptstack.tasks.worker_services import WorkerServices
from tests.batches import (
    CHAT,
    EMBEDDINGS,
    RESPONSES,
    batch_of,
    chat,
    done,
    embedding,
    jsonl,
    outputs,
    part,
    settle,
    take_in,
    upload,
)
from tests.fakes import FakeProvider
from tests.runs import in_ledger, work

FAKE = {"model": "fake/fake-1"}


def ids(lines: list[dict[str, Any]]) -> list[str]:
    return [line["custom_id"] for line in lines]


def test_each_line_of_chat_is_answered(stack: WorkerServices, test_user: UserView) -> None:
    batch = batch_of(stack, test_user.id, [chat("a", "Hello."), chat("b", "Good bye.")])
    assert (batch.status, batch.counts) == ("validating", BatchCounts())
    ended = done(stack, batch)
    assert (ended.status, ended.counts) == ("completed", BatchCounts(2, 2, 0))
    answered, failed = outputs(stack, ended)
    assert (ids(answered), failed, ended.error_file_id) == (["a", "b"], [], None)
    [first, _] = answered
    assert first["error"] is None
    assert first["response"]["status_code"] == 200
    body = first["response"]["body"]
    assert body["object"] == "chat.completion"
    assert "Hello." in body["choices"][0]["message"]["content"]
    assert ended.in_progress_at is not None
    assert ended.finalizing_at is not None
    assert ended.ended_at is not None
    assert batch.created_at <= ended.in_progress_at <= ended.finalizing_at <= ended.ended_at


def test_a_first_line_may_be_long(stack: WorkerServices, test_user: UserView) -> None:
    lines = [chat("long", "word " * 300_000), chat("short", "Hello.")]
    ended = done(stack, batch_of(stack, test_user.id, lines))
    assert (ended.status, ended.counts) == ("completed", BatchCounts(2, 2, 0))


@pytest.mark.parametrize("form", ["float", "base64"])
def test_each_line_of_embeddings_has_its_vector(
    stack: WorkerServices, test_user: UserView, form: str
) -> None:
    lines = [embedding(f"{n}", f"Text {n}.", encoding_format=form) for n in range(3)]
    ended = done(stack, batch_of(stack, test_user.id, lines, EMBEDDINGS))
    assert ended.status is BatchStatus.COMPLETED
    answered, _ = outputs(stack, ended)
    assert ids(answered) == ["0", "1", "2"]
    body = answered[0]["response"]["body"]
    assert body["usage"] == {"prompt_tokens": 2, "total_tokens": 2}  # of 7 bytes
    [one] = body["data"]
    assert isinstance(one["embedding"], str if form == "base64" else list)


def test_responses_are_whole_objects(stack: WorkerServices, test_user: UserView) -> None:
    body = {"model": "demo/demo-1", "input": "Hello.", "max_output_tokens": 50}
    line = {"custom_id": "a", "method": "POST", "url": RESPONSES, "body": body}
    ended = done(stack, batch_of(stack, test_user.id, [line], RESPONSES))
    [answered], _ = outputs(stack, ended)
    response = answered["response"]["body"]
    assert (response["object"], response["status"]) == ("response", "completed")
    assert response["max_output_tokens"] == 50
    assert "Hello." in response["output"][0]["content"][0]["text"]


def test_a_request_that_its_provider_refuses_is_among_the_errors(
    stack: WorkerServices, test_user: UserView, fake_llm: FakeProvider
) -> None:
    def answer(prompt: str) -> str:
        if prompt == "Bad.":
            raise InvalidProviderRequest("It was refused.", detail="No such thing.", status=400)
        return "Yes."

    fake_llm.answer = answer
    lines = [chat("a", "Good.", **FAKE), chat("b", "Bad.", **FAKE), chat("c", "Well.", **FAKE)]
    ended = done(stack, batch_of(stack, test_user.id, lines))
    assert (ended.status, ended.counts) == ("completed", BatchCounts(3, 2, 1))
    answered, [failed] = outputs(stack, ended)
    assert ids(answered) == ["a", "c"]
    assert (failed["custom_id"], failed["error"]) == ("b", None)
    assert failed["response"]["status_code"] == 400
    assert "No such thing." in failed["response"]["body"]["error"]["message"]
    fake_llm.answer = lambda prompt: "Now."
    again = stack.batches.retry(ended.id, test_user.id)
    assert (again.status, again.counts) == ("in_progress", BatchCounts(3, 2, 0))
    assert again.ended_at is None
    assert again.run_id is not None
    work(stack, again.run_id)
    ended = settle(stack, again)
    assert (ended.status, ended.counts) == ("completed", BatchCounts(3, 3, 0))
    assert ids(part(stack, ended.output_file_id)) == ["a", "b", "c"]
    assert ended.error_file_id is None
    assert fake_llm.asked == {"Good.": 1, "Bad.": 2, "Well.": 1}


SAME = chat("a", "Hello.")
FAULTS: dict[str, tuple[list[Any], int | None, str, str | None]] = {
    "no JSON": ([SAME, "{"], 2, "invalid_json_line", None),
    "no object": ([SAME, "[]"], 2, "invalid_type", None),
    "an id twice": ([SAME, chat("b", "x"), chat("a", "y")], 3, "duplicate_custom_id", None),
    "no id": ([{**SAME, "custom_id": None}], 1, "missing_required_parameter", "custom_id"),
    "an id that is a number": ([{**SAME, "custom_id": 7}], 1, "invalid_type", "custom_id"),
    "no body": ([SAME, {**SAME, "custom_id": "b", "body": None}], 2,
                "missing_required_parameter", "body"),
    "another method": ([{**SAME, "method": "GET"}], 1, "invalid_method", "method"),
    "another endpoint": ([SAME, embedding("b", "x")], 2, "invalid_url", "url"),
    "another model": ([SAME, chat("b", "x", model="demo/other")], 2, "mismatched_model",
                      "body.model"),
    "no model": ([chat("a", "x", model=None)], 1, "missing_required_parameter", "body.model"),
    "a model that nobody has": ([chat("a", "x", model="nobody/any")], None, "model_not_found",
                                "model"),
    "a stream": ([SAME, chat("b", "x", stream=True)], 2, "invalid_type", None),
    "no messages": ([{**SAME, "body": {"model": "demo/demo-1"}}], 1, "invalid_type", None),
    "blank lines alone": (["", " "], None, "empty_file", None),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_with_a_fault_fails_with_its_line_and_leaves_no_run(
    stack: WorkerServices, test_user: UserView, fault: str
) -> None:
    lines, line, code, param = FAULTS[fault]
    ended = take_in(stack, batch_of(stack, test_user.id, lines))
    assert ended.status is BatchStatus.FAILED
    [error] = ended.errors
    assert (error.line, error.code, error.param) == (line, code, param)
    assert error.message
    assert (ended.output_file_id, ended.error_file_id) == (None, None)
    assert ended.counts == BatchCounts()
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 0
    assert in_ledger(stack, "SELECT count(*) FROM items") == 0
    with pytest.raises(WrongState, match="mended"):
        stack.batches.retry(ended.id)


def test_so_many_errors_are_listed_and_the_rest_are_counted(
    stack: WorkerServices, test_user: UserView
) -> None:
    ended = take_in(stack, batch_of(stack, test_user.id, ["{"] * 100))
    assert len(ended.errors) == 21
    assert ended.errors[-1].message == "80 more lines are not valid."


@pytest.mark.parametrize(
    ("begin", "line_end", "end"),
    [(b"\xef\xbb\xbf", b"\n", b"\n"), (b"", b"\r\n", b"\r\n"), (b"", b"\n", b"")],
    ids=["mark", "crlf", "no-last-end"],
)
def test_lines_may_end_and_begin_as_writers_do(
    stack: WorkerServices, test_user: UserView, begin: bytes, line_end: bytes, end: bytes
) -> None:
    content = jsonl([chat("a", "Hello."), chat("b", "Well.")]).rstrip(b"\n")
    file_id = upload(stack, test_user.id, begin + content.replace(b"\n", line_end) + end)
    batch = stack.batches.create(
        file_id, CHAT, "1h", user_id=test_user.id, api_key_id=None, key_limits=None
    )
    assert done(stack, batch).counts == BatchCounts(2, 2, 0)


def test_a_batch_of_too_many_lines_fails(stack: WorkerServices, test_user: UserView) -> None:
    stack.settings.max_batch_lines = 2
    ended = take_in(stack, batch_of(stack, test_user.id, [chat(f"{n}", "x") for n in range(3)]))
    [error] = ended.errors
    assert error.code == "too_many_inputs"
    assert "MAX_BATCH_LINES" in error.message
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 0


def test_a_batch_that_cannot_be_done_in_its_window_may_be_refused(
    stack: WorkerServices, test_user: UserView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack.feasibility, "_limits_of", lambda *_: Limits(requests=1 / 60))
    lines = [chat(f"{n}", f"Say {n}.") for n in range(26)]
    taken = take_in(stack, batch_of(stack, test_user.id, lines))
    assert taken.status == BatchStatus.IN_PROGRESS
    stack.batches.cancel(taken.id, test_user.id)
    stack.settings.batch_refuses_late = True
    ended = take_in(stack, batch_of(stack, test_user.id, lines))
    assert ended.status == BatchStatus.FAILED
    [error] = ended.errors
    assert (error.code, error.param) == ("window_too_short", "completion_window")
    assert "it could be done at " in error.message
    assert "longer completion_window" in error.message
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 1


def refused(stack: WorkerServices, pointer: str, **asked: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        stack.batches.create(**asked)
    assert caught.value.pointer == pointer


def test_what_a_batch_is_asked_for_with_is_checked_before_it_is_there(
    stack: WorkerServices, test_user: UserView
) -> None:
    def asked(**change: Any) -> dict[str, Any]:
        same = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
        owner = {"user_id": test_user.id, "api_key_id": None, "key_limits": None}
        return {**same, **owner, **change}

    file_id = upload(stack, test_user.id, jsonl([SAME]))
    other = stack.users.create("bob@example.org")
    refused(stack, "/input_file_id", **asked(input_file_id=test_user.id))
    refused(stack, "/input_file_id", **asked(user_id=other.id))
    notes = upload(stack, test_user.id, jsonl([SAME]), purpose="user_data")
    refused(stack, "/input_file_id", **asked(input_file_id=notes))
    refused(stack, "/endpoint", **asked(endpoint="/v1/completions"))
    for window in ("24", "0h", "24hours", "1d", "-1h", "9999h", "\uff11h"):
        refused(stack, "/completion_window", **asked(completion_window=window))
    for metadata in ({f"{n}": "" for n in range(17)}, {"n" * 65: ""}, {"n": "v" * 513}, {"n": 1}):
        refused(stack, "/metadata", **asked(metadata=metadata))
    most = {"n" * 64: "v" * 512, **{f"{n}": "" for n in range(15)}}
    assert stack.batches.create(**asked(metadata=most)).metadata == most
    stack.settings.max_batch_bytes = 10
    del stack.batches
    refused(stack, "/input_file_id", **asked())


def test_a_batch_that_is_asked_for_again_is_the_same(
    stack: WorkerServices, test_user: UserView
) -> None:
    owner: dict[str, Any] = {"user_id": test_user.id, "api_key_id": None, "key_limits": None}
    file_id = upload(stack, test_user.id, jsonl([SAME]))
    first = stack.batches.create(file_id, CHAT, "24h", {"a": "b"}, **owner)
    assert stack.batches.create(file_id, CHAT, "24h", {"a": "b"}, **owner).id == first.id
    assert stack.batches.create(file_id, CHAT, "24h", {"a": "c"}, **owner).id != first.id
    assert stack.batches.create(file_id, CHAT, "1h", {"a": "b"}, **owner).id != first.id
    in_ledger(stack, "UPDATE batches SET created_at = now() - interval '61 s' RETURNING 1")
    assert stack.batches.create(file_id, CHAT, "24h", {"a": "b"}, **owner).id != first.id


@pytest.mark.parametrize("stopped", ["unread", "under way", "by its run"])
def test_a_batch_that_is_being_cancelled_is_not_asked_for_again(
    stack: WorkerServices, test_user: UserView, stopped: str
) -> None:
    """Who cancels a batch and makes it anew wants it done."""
    owner: dict[str, Any] = {"user_id": test_user.id, "api_key_id": None, "key_limits": None}
    first = batch_of(stack, test_user.id, [SAME])
    if stopped != "unread":
        first = take_in(stack, first)
    if stopped == "by its run":
        assert first.run_id is not None
        stack.runs.cancel(first.run_id)
    else:
        stack.batches.cancel(first.id)
    again = stack.batches.create(first.input_file_id, CHAT, "24h", **owner)
    assert (again.id != first.id, again.status) == (True, "validating")


def test_a_cancelled_batch_ends_with_every_line_in_one_output_and_goes_on_when_retried(
    stack: WorkerServices, test_user: UserView, fake_llm: FakeProvider
) -> None:
    batch = take_in(
        stack, batch_of(stack, test_user.id, [chat(f"{n}", f"{n}", **FAKE) for n in range(5)])
    )
    assert batch.run_id is not None

    def cancel_at_the_third() -> None:
        if fake_llm.calls == 3:
            stack.batches.cancel(batch.id, test_user.id)

    fake_llm.on_call = cancel_at_the_third
    in_ledger(stack, "UPDATE runs SET in_flight = 1 RETURNING 1")
    work(stack, batch.run_id)
    cancelled = stack.batches.get(batch.id)
    assert cancelled.status is BatchStatus.CANCELLING
    assert cancelled.cancelling_at is not None
    ended = settle(stack, batch)
    assert ended.status is BatchStatus.CANCELLED
    counts = ended.counts
    assert (counts.total, counts.completed + counts.failed) == (5, 5)
    assert 0 < counts.completed < 5
    answered, left = outputs(stack, ended)
    assert sorted(ids(answered) + ids(left)) == ["0", "1", "2", "3", "4"]
    assert len(answered) == counts.completed
    assert {line["error"]["code"] for line in left} == {"batch_cancelled"}
    assert {line["response"] for line in left} == {None}
    assert stack.batches.cancel(batch.id) == ended  # a client sends it again
    fake_llm.on_call = lambda: None
    again = stack.batches.retry(ended.id)
    assert (again.cancelling_at, again.finalizing_at, again.ended_at) == (None, None, None)
    assert again.status is BatchStatus.IN_PROGRESS
    work(stack, batch.run_id)
    ended = settle(stack, batch)
    assert (ended.status, ended.counts) == ("completed", BatchCounts(5, 5, 0))
    assert max(fake_llm.asked.values()) == 1
    with pytest.raises(WrongState, match="already: it is completed"):
        stack.batches.cancel(batch.id)


def test_a_batch_that_is_cancelled_before_its_file_was_read_has_every_line_in_an_output(
    stack: WorkerServices, test_user: UserView, fake_llm: FakeProvider
) -> None:
    batch = batch_of(stack, test_user.id, [chat(f"{n}", f"{n}", **FAKE) for n in range(3)])
    assert stack.batches.cancel(batch.id).status is BatchStatus.CANCELLING
    with pytest.raises(NotYet):
        stack.batches.retry(batch.id)
    assert settle(stack, batch).status is BatchStatus.CANCELLING
    cancelled_with_every_line(stack, batch, ["0", "1", "2"])
    again = stack.batches.retry(batch.id)
    assert again.status is BatchStatus.IN_PROGRESS
    assert done(stack, again).counts == BatchCounts(3, 3, 0)
    assert fake_llm.calls == 3


def cancelled_with_every_line(
    stack: WorkerServices, batch: BatchView, custom_ids: list[str]
) -> None:
    """Nothing was asked for it, and no worker got anything to do."""
    ended = done(stack, batch)
    count = len(custom_ids)
    assert (ended.status, ended.counts) == ("cancelled", BatchCounts(count, 0, count))
    assert ended.cancelling_at is not None
    answered, left = outputs(stack, ended)
    assert (answered, ids(left)) == ([], custom_ids)
    assert {line["error"]["code"] for line in left} == {"batch_cancelled"}
    assert in_ledger(stack, "SELECT count(*) FROM jobs WHERE kind <> 'batch'") == 0


def test_a_batch_that_is_cancelled_while_its_file_is_read_asks_for_nothing(
    stack: WorkerServices, test_user: UserView, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(stack, test_user.id, [embedding("a", "x"), embedding("b", "y")], EMBEDDINGS)
    start: Callable[..., Any] = stack.runs.start

    def cancelled(*given: Any, **named: Any) -> Any:
        stack.batches.cancel(batch.id)
        settle(stack, batch)  # the upkeep of any worker looks at it meanwhile
        return start(*given, **named)

    monkeypatch.setattr(stack.runs, "start", cancelled)
    take_in(stack, batch)
    stack.run_lifecycle.run_once()
    cancelled_with_every_line(stack, batch, ["a", "b"])


def test_a_cancelled_batch_whose_file_is_not_valid_says_why(
    stack: WorkerServices, test_user: UserView
) -> None:
    batch = batch_of(stack, test_user.id, [SAME, "{"])
    stack.batches.cancel(batch.id)
    ended = take_in(stack, batch)
    assert (ended.status, ended.counts) == ("failed", BatchCounts())
    assert [error.line for error in ended.errors] == [2]


def test_the_job_that_takes_a_file_in_is_cancelled_with_its_batch_only(
    stack: WorkerServices, test_user: UserView
) -> None:
    batch = batch_of(stack, test_user.id, [SAME])
    with stack.ledger.transaction() as unit:
        found = unit.batches.get(batch.id)
    assert found is not None
    with pytest.raises(WrongState, match="cancel the batch"):
        stack.jobs.cancel(found.job_id, owner=test_user.id)
    assert done(stack, batch).counts == BatchCounts(1, 1, 0)


def test_a_limited_key_retries_only_what_came_with_it(
    stack: WorkerServices, test_user: UserView
) -> None:
    begun = take_in(stack, batch_of(stack, test_user.id, [chat("a", "x")]))
    stack.batches.cancel(begun.id)
    unread = batch_of(stack, test_user.id, [SAME])
    in_ledger(stack, "UPDATE jobs SET expires_at = now() WHERE state = 'queued' RETURNING 1")
    stack.liveness.run_once()
    for batch, status in ((begun, BatchStatus.CANCELLED), (unread, BatchStatus.EXPIRED)):
        assert settle(stack, batch).status is status
        with pytest.raises(NotPermitted):
            stack.batches.retry(batch.id, only_key=new_id())
        assert stack.batches.get(batch.id).status is status


def test_batches_with_calls_under_way_do_not_hold_up_the_end_of_others(
    stack: WorkerServices, test_user: UserView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "AT_ONCE", 2)
    for n in range(3):
        batch = take_in(stack, batch_of(stack, test_user.id, [chat("a", f"{n}")]))
        stack.run_lifecycle.run_once()
        in_ledger(stack, "UPDATE jobs SET state = 'running' WHERE state = 'queued' RETURNING 1")
        assert stack.batches.cancel(batch.id).status is BatchStatus.CANCELLING
    assert in_ledger(stack, "SELECT count(*) FROM jobs WHERE state = 'running'") == 3
    last = take_in(stack, batch_of(stack, test_user.id, [SAME]))
    stack.batches.cancel(last.id)
    assert settle(stack, last).status is BatchStatus.CANCELLED
    assert stack.batches.get(batch.id).status is BatchStatus.CANCELLING


def test_batches_that_cannot_be_ended_do_not_hold_up_the_end_of_others(
    stack: WorkerServices, test_user: UserView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "AT_ONCE", 1)
    broken, last = (
        take_in(stack, batch_of(stack, test_user.id, [chat("a", f"{n}")])) for n in range(2)
    )
    end: Callable[..., Any] = stack.batch_endings._end

    def fail(batch_id: UUID) -> Any:
        if batch_id == broken.id:
            raise ValueError("It has an odd row.")
        return end(batch_id)

    monkeypatch.setattr(stack.batch_endings, "_end", fail)
    for batch in (broken, last):
        stack.batches.cancel(batch.id)
    assert settle(stack, last).status is BatchStatus.CANCELLED


def test_an_expired_batch_has_the_rest_among_its_errors(
    stack: WorkerServices, test_user: UserView
) -> None:
    batch = take_in(stack, batch_of(stack, test_user.id, [SAME, chat("b", "x")]))
    in_ledger(stack, "UPDATE runs SET expires_at = now() RETURNING 1")
    stack.run_maintenance.run_once(0)
    ended = settle(stack, batch)
    assert (ended.status, ended.counts) == ("expired", BatchCounts(2, 0, 2))
    assert ended.output_file_id is None
    assert [line["error"]["code"] for line in part(stack, ended.error_file_id)] == [
        "batch_expired",
        "batch_expired",
    ]
    again = stack.batches.retry(batch.id)
    assert again.expires_at > ended.expires_at
    assert done(stack, batch).counts == BatchCounts(2, 2, 0)


def test_a_batch_whose_window_ends_before_its_file_is_read_has_every_line_among_its_errors(
    stack: WorkerServices, test_user: UserView
) -> None:
    batch = batch_of(stack, test_user.id, [SAME, chat("b", "x")], window="1h")
    late = "UPDATE {} SET expires_at = expires_at - interval '61 minutes' RETURNING 1"
    for table in ("batches", "jobs"):
        in_ledger(stack, late.format(table))
    stack.liveness.run_once()
    ended = done(stack, batch)
    assert (ended.status, ended.counts) == ("expired", BatchCounts(2, 0, 2))
    assert [line["error"]["code"] for line in part(stack, ended.error_file_id)] == [
        "batch_expired",
        "batch_expired",
    ]
    assert in_ledger(stack, "SELECT count(*) FROM jobs WHERE kind <> 'batch'") == 0
    assert stack.batches.retry(batch.id).expires_at > ended.expires_at
    assert done(stack, batch).counts == BatchCounts(2, 2, 0)


def test_a_spent_quota_fails_the_batch_with_every_line_in_one_output(
    stack: WorkerServices, test_user: UserView, fake_llm: FakeProvider
) -> None:
    def spend() -> None:
        if fake_llm.calls == 2:
            raise QuotaExhausted("The account has no money left.", status=429)

    fake_llm.on_call = spend
    lines = [chat(f"{n}", f"{n}", **FAKE) for n in range(4)]
    batch = take_in(stack, batch_of(stack, test_user.id, lines))
    in_ledger(stack, "UPDATE runs SET in_flight = 1 RETURNING 1")
    ended = done(stack, batch)
    assert ended.status is BatchStatus.FAILED
    assert [error.code for error in ended.errors] == ["quota_exhausted"]
    answered, failed = outputs(stack, ended)
    assert sorted(ids(answered) + ids(failed)) == ["0", "1", "2", "3"]
    assert (len(answered), len(failed)) == (ended.counts.completed, ended.counts.failed)
    fake_llm.on_call = lambda: None
    stack.batches.retry(batch.id)
    ended = done(stack, batch)
    assert (ended.status, ended.errors, ended.counts) == ("completed", [], BatchCounts(4, 4, 0))


def test_a_second_try_of_the_intake_makes_no_second_run(
    stack: WorkerServices, test_user: UserView, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(stack, test_user.id, [SAME])

    class Killed(BaseException):
        """The process is gone: nothing is tidied up."""

    def die(*given: object, **named: object) -> None:
        raise Killed

    first: Callable[..., Any] = stack.runs.start
    with stack.ledger.transaction() as unit:
        found = unit.batches.get(batch.id)
        assert found is not None
    monkeypatch.setattr(stack.runs, "start", die)
    with pytest.raises(Killed):
        take_in(stack, batch)
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 1
    in_ledger(stack, "UPDATE jobs SET state = 'queued', worker_id = NULL RETURNING 1")
    monkeypatch.setattr(stack.runs, "start", first)
    ended = done(stack, batch)
    assert (ended.status, ended.counts) == ("completed", BatchCounts(1, 1, 0))
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 1
    assert in_ledger(stack, "SELECT count(*) FROM items") == 1


def test_a_worker_that_lost_the_intake_starts_nothing(
    stack: WorkerServices, test_user: UserView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker has taken the file in meanwhile."""
    batch = batch_of(stack, test_user.id, [SAME])
    start: Callable[..., Any] = stack.runs.start

    def late(*given: Any, **named: Any) -> Any:
        monkeypatch.setattr(stack.runs, "start", start)
        in_ledger(stack, "UPDATE jobs SET state = 'queued', worker_id = NULL RETURNING 1")
        assert take_in(stack, batch).status is BatchStatus.IN_PROGRESS
        return start(*given, **named)

    monkeypatch.setattr(stack.runs, "start", late)
    take_in(stack, batch)
    assert in_ledger(stack, "SELECT count(*) FROM runs WHERE state = 'running'") == 1
    assert done(stack, batch).counts == BatchCounts(1, 1, 0)


def test_a_file_that_is_deleted_before_it_is_read_fails_the_batch(
    stack: WorkerServices, test_user: UserView
) -> None:
    batch = batch_of(stack, test_user.id, [SAME])
    stack.files.delete(batch.input_file_id, test_user.id)
    ended = take_in(stack, batch)
    assert ended.status is BatchStatus.FAILED
    [error] = ended.errors
    assert error.code == "not_found"
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 0


def test_a_run_is_deleted_when_its_batch_has_noted_what_came_of_it(
    stack: WorkerServices, test_user: UserView
) -> None:
    batch = take_in(stack, batch_of(stack, test_user.id, [SAME]))
    assert batch.run_id is not None
    stack.runs.cancel(batch.run_id)
    with pytest.raises(NotYet):
        stack.runs.delete(batch.run_id)
    ended = settle(stack, batch)
    assert ended.status is BatchStatus.CANCELLED
    assert ended.cancelling_at is not None
    stack.runs.delete(batch.run_id)
    assert stack.batches.get(batch.id) == ended
    with pytest.raises(NotFound, match="deleted"):
        part(stack, ended.error_file_id)
    with pytest.raises(NotFound):
        stack.batches.retry(batch.id)


def test_a_run_that_is_retried_by_itself_opens_its_batch_again(
    stack: WorkerServices, test_user: UserView
) -> None:
    batch = take_in(stack, batch_of(stack, test_user.id, [SAME]))
    assert batch.run_id is not None
    stack.batches.cancel(batch.id)
    assert settle(stack, batch).status is BatchStatus.CANCELLED
    stack.runs.retry(batch.run_id)
    assert stack.batches.get(batch.id).status is BatchStatus.IN_PROGRESS
    assert done(stack, batch).status is BatchStatus.COMPLETED


def test_whoever_cancels_may_die_before_the_run_ends(
    stack: WorkerServices, test_user: UserView
) -> None:
    batch = take_in(stack, batch_of(stack, test_user.id, [SAME]))
    in_ledger(stack, "UPDATE batches SET cancelling_at = now() RETURNING 1")
    settle(stack, batch)
    assert batch.run_id is not None
    assert stack.runs.get(batch.run_id).state is RunState.CANCELLED
    assert settle(stack, batch).status is BatchStatus.CANCELLED


def opened(stack: WorkerServices, file_id: UUID, owner: UUID, after_lines: int = 0) -> Any:
    """What an output has behind so many lines."""
    return stack.files.opened(file_id, owner, after_lines=after_lines).content


def test_an_output_grows_in_order_while_the_batch_goes_on(
    stack: WorkerServices, test_user: UserView, fake_llm: FakeProvider
) -> None:
    """What stands behind an open request comes when that has ended."""
    lines = [chat(f"{n}", f"{n}", **FAKE) for n in range(4)]
    batch = take_in(stack, batch_of(stack, test_user.id, lines))
    assert batch.run_id is not None
    assert (part(stack, batch.output_file_id), part(stack, batch.error_file_id)) == ([], [])
    with stack.ledger.transaction() as unit:
        unit.session.execute(
            text(
                "INSERT INTO outcomes (run_id, position, error_code) "
                "VALUES (:run, 2, 'CONTENT_REFUSED'), (:run, 1, NULL), (:run, 4, NULL)"
            ),
            {"run": batch.run_id},
        )
        unit.session.execute(
            text(
                "INSERT INTO answers (provider, model, content_hash, result) "
                "SELECT 'fake', 'fake-1', content_hash, '{\"text\": \"x\"}' FROM items"
            )
        )
    assert batch.output_file_id is not None
    answered, failed = outputs(stack, batch)
    assert (ids(answered), ids(failed)) == (["0"], ["1"])
    content: Any = opened(stack, batch.output_file_id, test_user.id)
    assert (content.tag, content.last_line) == (None, 1)
    content = opened(stack, batch.output_file_id, test_user.id, after_lines=1)
    assert (b"".join(content.blocks()), content.last_line) == (b"", 1)


def test_an_ended_output_is_read_from_any_line_and_byte(
    stack: WorkerServices, test_user: UserView
) -> None:
    ended = done(stack, batch_of(stack, test_user.id, [chat(f"{n}", f"{n}") for n in range(3)]))
    assert ended.output_file_id is not None
    whole: Any = opened(stack, ended.output_file_id, test_user.id)
    written = b"".join(whole.blocks())
    assert (whole.length, whole.last_line) == (len(written), 3)
    assert whole.tag is not None
    assert b"".join(whole.blocks(5, 20)) == written[5:20]
    rest: Any = opened(stack, ended.output_file_id, test_user.id, after_lines=2)
    assert b"".join(rest.blocks()) == written.splitlines(keepends=True)[2]
    assert rest.tag != whole.tag
    none: Any = opened(stack, ended.output_file_id, test_user.id, after_lines=9)
    assert b"".join(none.blocks()) == b""


def test_outputs_expire_so_long_after_the_end_of_their_batch(
    stack: WorkerServices, test_user: UserView
) -> None:
    lines = [chat("a", "x"), chat("b", "y")]
    batch = take_in(stack, batch_of(stack, test_user.id, lines, outputs_kept_seconds=3_600))
    assert batch.output_file_id is not None

    def expires_at() -> Any:
        assert batch.output_file_id is not None
        return stack.files.get(batch.output_file_id, test_user.id).expires_at

    assert expires_at() is None  # the batch may take days
    stack.batches.cancel(batch.id)
    ended = settle(stack, batch)
    assert ended.ended_at is not None
    assert abs((expires_at() - ended.ended_at).total_seconds() - 3_600) < 60
    stack.batches.retry(batch.id)
    assert expires_at() is None
    ended = done(stack, batch)
    assert ended.status is BatchStatus.COMPLETED
    assert expires_at() is not None
    in_ledger(stack, "UPDATE files SET expires_at = now() WHERE batch_id IS NOT NULL RETURNING 1")
    with pytest.raises(NotFound):
        outputs(stack, ended)


def ended_long_ago(stack: WorkerServices, batch: BatchView) -> None:
    in_ledger(stack, "UPDATE batches SET ended_at = now() - interval '9 days' RETURNING 1")


def test_old_batches_are_deleted(stack: WorkerServices, test_user: UserView) -> None:
    ended = done(stack, batch_of(stack, test_user.id, [SAME]))
    ended_long_ago(stack, ended)
    stack.run_maintenance.run_once(10 * 86_400)
    assert stack.batches.get(ended.id).status is BatchStatus.COMPLETED
    stack.run_maintenance.run_once(8 * 86_400)
    with pytest.raises(NotFound):
        stack.batches.get(ended.id)
