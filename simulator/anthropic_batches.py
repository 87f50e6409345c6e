"""Anthropic's message batches: requests in the body, results as JSON lines."""

import itertools
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from promptstack.simulator.anthropic import MESSAGES, messages, refuse
from promptstack.simulator.batches import Batch, Batches, Line, LineState
from promptstack.simulator.wire import (
    Answer,
    Content,
    Endpoint,
    ProviderRequest,
    Refusal,
    encode,
)

BATCHES = "/v1/messages/batches"
PREFIX = "msgbatch_"
MOST_REQUESTS = 100_000
DAY = 24 * 60 * 60
PAGE, LONGEST_PAGE = 20, 1_000
COUNTED = {
    "processing": LineState.WAITING,
    "succeeded": LineState.SUCCEEDED,
    "errored": LineState.FAILED,
    "canceled": LineState.CANCELLED,
    "expired": LineState.EXPIRED,
}
ENDED = frozenset({"completed", "expired", "cancelled"})


class AnthropicBatches:
    """The batches of one simulator, on Anthropic's wire."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._numbers = itertools.count(1)

    def endpoints(self) -> Mapping[tuple[str, str], Endpoint]:
        """What is served, by method and path."""
        one = f"{BATCHES}/{{id}}"
        return {
            ("POST", BATCHES): self.create,
            ("GET", BATCHES): self.list,
            ("GET", one): lambda ask: Answer(describe(self._get(ask))),
            ("POST", f"{one}/cancel"): self.cancel,
            ("GET", f"{one}/results"): self.results,
            ("DELETE", one): self.delete,
        }

    def create(self, ask: ProviderRequest) -> Answer:
        """Begin a batch."""
        requests = ask.body["requests"]
        ids = [request["custom_id"] for request in requests]
        if not 1 <= len(ids) <= MOST_REQUESTS:
            raise Refusal(400, f"requests: give 1 to {MOST_REQUESTS}")
        if len(set(ids)) < len(ids):
            raise Refusal(400, "requests: custom_id must be unique")
        if any(request["params"].get("stream") for request in requests):
            raise Refusal(400, "requests: stream is not supported")
        content = b"".join(orjson.dumps(request) + b"\n" for request in requests)
        batch = Batch(
            id=f"{PREFIX}{next(self._numbers):024d}",
            content=content,
            read=read_line,
            endpoint=messages,
            made_of={"origin": ask.origin},
            created_at=self._batches.clock(),
            states=bytearray(len(ids)),
        )
        self._batches.start(batch)
        return Answer(describe(batch))

    def list(self, ask: ProviderRequest) -> Answer:
        """List batches, newest first."""
        found = [describe(batch) for batch in self._batches.newest_first(PREFIX)]
        ids = [one["id"] for one in found]
        limit = int(ask.query.get("limit", PAGE))
        if not 1 <= limit <= LONGEST_PAGE:
            raise Refusal(400, f"limit: give 1 to {LONGEST_PAGE}")
        if "before_id" in ask.query:
            newer = found[: ids.index(ask.query["before_id"])]
            data, has_more = newer[-limit:], len(newer) > limit
        else:
            after = ask.query.get("after_id")
            older = found if after is None else found[ids.index(after) + 1 :]
            data, has_more = older[:limit], len(older) > limit
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        return Answer({"data": data, "has_more": has_more, "first_id": first, "last_id": last})

    def cancel(self, ask: ProviderRequest) -> Answer:
        """Stop a batch; what is done stays in its results."""
        batch = self._get(ask)
        self._batches.cancel(batch)
        return Answer(describe(batch))

    def results(self, ask: ProviderRequest) -> Answer:
        """Read the results of a batch that has ended."""
        batch = self._get(ask)
        if batch.status not in ENDED:
            raise Refusal(404, f"Batch {batch.id} has no results yet")
        size = sum(len(row) for row in rows(batch))
        return Answer({}, content=Content(rows(batch), size, f"{batch.id}.jsonl"))

    def delete(self, ask: ProviderRequest) -> Answer:
        """Forget a batch that has ended."""
        batch = self._get(ask)
        if batch.status not in ENDED:
            raise Refusal(400, f"Batch {batch.id} has not ended: cancel it first")
        self._batches.forget(batch)
        return Answer({"id": batch.id, "type": "message_batch_deleted"})

    def _get(self, ask: ProviderRequest) -> Batch:
        return self._batches.get(ask.path["id"])


def read_line(number: int, raw: bytes) -> Line:
    """Read a request as it was kept."""
    read = orjson.loads(raw)
    return Line(number, read["custom_id"], MESSAGES, read["params"])


def describe(batch: Batch) -> Mapping[str, Any]:
    """Make Anthropic's message batch."""
    status = "canceling" if batch.status == "cancelling" else "in_progress"
    has_ended = batch.status in ENDED
    counts = batch.counts()
    url = f"{batch.made_of['origin']}{BATCHES}/{batch.id}/results"
    # As the service does: the counts come with the end.
    counted = {
        name: counts[state] if has_ended else len(batch.states) * (name == "processing")
        for name, state in COUNTED.items()
    }
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if has_ended else status,
        "request_counts": counted,
        "created_at": _time(batch.created_at),
        "expires_at": _time(batch.created_at + DAY),
        "ended_at": _time(batch.times[batch.status]) if has_ended else None,
        "cancel_initiated_at": _time(batch.times.get("cancelling")),
        "archived_at": None,
        "results_url": url if has_ended else None,
    }


def rows(batch: Batch) -> Iterator[bytes]:
    """Write the results."""
    for line in batch.lines():
        result = _result(batch, line)
        yield encode({"custom_id": line.custom_id, "result": result}) + b"\n"


def _result(batch: Batch, line: Line) -> Mapping[str, Any]:
    state = LineState(batch.states[line.number])
    if state in {LineState.EXPIRED, LineState.CANCELLED}:
        return {"type": "expired" if state is LineState.EXPIRED else "canceled"}
    try:
        return {"type": "succeeded", "message": batch.answer(line).body}
    except Refusal as refusal:
        return {"type": "errored", "error": refuse(refusal, f"req_{batch.id}_{line.number}")}


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
