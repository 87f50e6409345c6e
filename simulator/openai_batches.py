"""OpenAI's batches: made of a file, answered in two files."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from promptstack.simulator.batches import Batch, Batches, Line, LineState
from promptstack.simulator.files import Files, page
from promptstack.simulator.openai import OPENAI, refuse
from promptstack.simulator.wire import Answer, Endpoint, ProviderRequest, Refusal, encode

BATCHES = "/v1/batches"
PREFIX = "batch_"
MOST_LINES = 50_000
DAY = 24 * 60 * 60
PAGE, LONGEST_PAGE = 20, 100
MOST_ERRORS = 100
STATUSES = {
    name: f"{name}_at"
    for name in (
        "in_progress",
        "finalizing",
        "completed",
        "failed",
        "expired",
        "cancelling",
        "cancelled",
    )
}
NO_ANSWER = {
    LineState.EXPIRED: ("batch_expired", "This request could not be executed in time."),
    LineState.CANCELLED: ("batch_cancelled", "This request was not executed: the batch ended."),
}


class OpenAIBatches:
    """The batches of one simulator, on OpenAI's wire."""

    def __init__(self, batches: Batches, files: Files) -> None:
        self._batches = batches
        self._files = files
        self._numbers = itertools.count(1)

    def endpoints(self) -> Mapping[tuple[str, str], Endpoint]:
        """What is served, by method and path."""
        return {
            ("POST", BATCHES): self.create,
            ("GET", BATCHES): self.list,
            ("GET", f"{BATCHES}/{{id}}"): lambda ask: Answer(describe(self._get(ask))),
            ("POST", f"{BATCHES}/{{id}}/cancel"): self.cancel,
        }

    def create(self, ask: ProviderRequest) -> Answer:
        """Begin a batch. What is wrong with its file shows later, in its errors."""
        asked = {name: ask.body.get(name) for name in ("input_file_id", "endpoint", "metadata")}
        endpoint = OPENAI.endpoints.get(("POST", str(asked["endpoint"])))
        if endpoint is None:
            raise Refusal(400, f"Invalid endpoint: '{asked['endpoint']}'.", "invalid_value")
        if ask.body.get("completion_window") != "24h":
            raise Refusal(400, "Invalid 'completion_window': only '24h'.", "invalid_value")
        try:
            given = self._files.get(str(asked["input_file_id"]))
        except Refusal as missing:
            # A name in the body is a fault of the body.
            raise Refusal(400, str(missing), "invalid_value") from missing
        if given.purpose != "batch":
            raise Refusal(400, f"The file's purpose is '{given.purpose}', not 'batch'.")
        batch = Batch(
            id=f"{PREFIX}{next(self._numbers):024d}",
            content=given.content,
            read=read_line,
            endpoint=endpoint,
            made_of=asked,
            created_at=self._batches.clock(),
        )
        self._batches.start(batch, check, self._write)
        return Answer(describe(batch))

    def list(self, ask: ProviderRequest) -> Answer:
        """List batches, newest first."""
        listed = [describe(batch) for batch in self._batches.newest_first(PREFIX)]
        return Answer(page(listed, ask.query, PAGE, LONGEST_PAGE))

    def cancel(self, ask: ProviderRequest) -> Answer:
        """Stop a batch; what is done stays in its files."""
        batch = self._get(ask)
        if batch.status in {"completed", "failed", "expired", "cancelled"}:
            raise Refusal(409, f"Cannot cancel a batch with status '{batch.status}'.")
        self._batches.cancel(batch)
        return Answer(describe(batch))

    def _get(self, ask: ProviderRequest) -> Batch:
        return self._batches.get(ask.path["id"])

    def _write(self, batch: Batch) -> None:
        """Make the two files: rows that are written again whenever they are read."""
        files = {}
        for part, is_output in (("output", True), ("error", False)):
            size = sum(len(row) for row in rows(batch, is_output=is_output))
            if not size:
                continue
            made = self._files.add(
                f"{batch.id}_{part}.jsonl",
                "batch_output",
                size=size,
                read=lambda is_output=is_output: rows(batch, is_output=is_output),  # type: ignore[misc]
            )
            files[part] = made.id
        batch.files = files


def read_line(number: int, raw: bytes) -> Line:
    """Read a line of the input file."""
    read = orjson.loads(raw.removeprefix(b"\xef\xbb\xbf"))
    return Line(number, read["custom_id"], read["url"], read["body"])


def check(batch: Batch) -> None:
    """Say what is wrong with the input file: a line that can't be read, that is there twice, ..."""
    ids: set[str] = set()
    models: set[str] = set()
    endpoint = batch.made_of["endpoint"]
    number = 0
    lines = batch.lines()
    while len(batch.errors) < MOST_ERRORS:
        number += 1
        try:
            line = next(lines)
        except StopIteration:
            break
        except (KeyError, TypeError, ValueError) as error:
            # Lines after one that can't be read aren't read.
            _blame(batch, "invalid_json_line", f"This line can't be read: {error}.", number)
            break
        models.add(str(line.body.get("model")))
        if line.custom_id in ids:
            message = f"The custom_id '{line.custom_id}' is used twice."
            _blame(batch, "duplicate_custom_id", message, number, "custom_id")
        if line.path != endpoint:
            _blame(batch, "invalid_url", f"The url is not {endpoint}.", number, "url")
        if line.body.get("stream"):
            _blame(batch, "invalid_value", "A batch can't stream.", number, "body.stream")
        if len(models) > 1:
            _blame(batch, "mismatched_model", "All lines need one model.", number, "body.model")
            break
        ids.add(line.custom_id)
    if not ids and not batch.errors:
        _blame(batch, "empty_file", "The input file is empty.", None)
    if len(ids) > MOST_LINES:
        _blame(batch, "too_many_tasks", f"More than {MOST_LINES} lines.", None)


def _blame(
    batch: Batch, code: str, message: str, line: int | None, param: str | None = None
) -> None:
    batch.errors.append({"code": code, "line": line, "message": message, "param": param})


def describe(batch: Batch) -> Mapping[str, Any]:
    """Make OpenAI's batch object."""
    counts = batch.counts()
    failed = counts[LineState.FAILED] + counts[LineState.EXPIRED] + counts[LineState.CANCELLED]
    errors = {"object": "list", "data": batch.errors}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.made_of["endpoint"],
        "errors": errors if batch.errors else None,
        "input_file_id": batch.made_of["input_file_id"],
        "completion_window": "24h",
        "status": batch.status,
        "output_file_id": batch.files.get("output"),
        "error_file_id": batch.files.get("error"),
        "created_at": int(batch.created_at),
        "expires_at": int(batch.created_at) + DAY,
        **{
            field: int(batch.times[status]) if status in batch.times else None
            for status, field in STATUSES.items()
        },
        "request_counts": {
            "total": len(batch.states),
            "completed": counts[LineState.SUCCEEDED],
            "failed": failed,
        },
        "metadata": batch.made_of["metadata"],
    }


def rows(batch: Batch, *, is_output: bool) -> Iterator[bytes]:
    """Write the lines of one of the two files."""
    for line in batch.lines():
        state = LineState(batch.states[line.number])
        if state is LineState.WAITING or (state is LineState.SUCCEEDED) is not is_output:
            continue
        request_id = f"{batch.id.replace(PREFIX, 'batch_req_')}_{line.number}"
        row: dict[str, Any] = {"id": request_id, "custom_id": line.custom_id}
        if state in NO_ANSWER:
            code, message = NO_ANSWER[state]
            yield _row({**row, "response": None, "error": {"code": code, "message": message}})
            continue
        try:
            status, body = 200, batch.answer(line).body
        except Refusal as refusal:
            status, body = refusal.status, refuse(refusal, request_id)
        response = {"status_code": status, "request_id": request_id, "body": body}
        yield _row({**row, "response": response, "error": None})


def _row(row: Mapping[str, Any]) -> bytes:
    return encode(row) + b"\n"
