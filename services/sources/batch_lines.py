"""Reads lines of OpenAI's Batch API: `custom_id`, `method`, `url` and `body`."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from json import JSONDecodeError
from typing import Any

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.request_bodies import (
    Asked,
    NotHonoured,
    asked_of,
    endpoint_of,
    kind_of_run,
)
from promptstack.services.sources.jsonl import (
    STRUCTURE,
    TEXT_IN_JSON,
    has_more,
    longest_line,
    physical_lines,
)
from promptstack.services.sources.python_records import as_json
from promptstack.services.sources.reading import BadRecord, Fault, Reading
from promptstack.services.sources.records import Unfolded, kind_of
from promptstack.services.validation.json_text import NotExact, dump_json, load_json

LOOKED_AT = 100
"""The first good request must be among this many records."""
HEAD_BYTES = 1_048_576
"""The look at the source ends after this many bytes, which stay in memory, or after a line."""
FORM = frozenset({"method", "url", "body"})
INPUTS = ("text", "prompt", "messages")
"""Fields of an ordinary record; a request has none of them."""
COMMANDS = {"generation": "runs generate", "embedding": "runs embed"}
KEPT_PLANS = 32
Placed = tuple[str, Any]
"""Where a record stands ("line 3"), and the record."""


class BatchLines:
    """What the requests of one source ask for beside their inputs.

    The first request that can be made sets the run's parameters. A request with others has them for
    itself. All must name the same model; one that names another is refused by its line.
    """

    def __init__(self, kind: str, plan: Callable[[Mapping[str, Any]], Any]) -> None:
        """Take the kind of the run, and a `plan` that raises `InvalidInput` for bad parameters."""
        self._kind = kind
        self._plan = plan
        self._how: Mapping[str, Any] | None = None
        self._first = "the records before it"
        self._plans: OrderedDict[bytes, Any] = OrderedDict()
        """The last plans of requests with parameters of their own: mostly there are few."""

    def agree(self, records: Iterable[Placed]) -> Any:
        """Return the plan of the first good request, or the plan without one."""
        for place, record in records:
            if not is_request(record):
                if _is_broken_request(record):
                    continue
                break
            with suppress(InvalidInput):
                how = self._asked(record).how
                plan = self._plan(how)
                self._how, self._first = how, place
                return plan
        return self._plan({})

    def unfold(self, record: dict[str, Any]) -> Unfolded:
        """Turn a request into an ordinary record; leave others unchanged. Raises `BadRecord`."""
        if not is_request(record):
            if self._how is None:
                return record, None
            raise self._no_request(record)
        asked = self._asked(record)
        own = None if asked.how == (self._how or {}) else self._own(asked.how)
        beside = {name: record[name] for name in record if name not in FORM}
        twice = next((name for name in asked.record if beside.get(name) is not None), None)
        if twice is not None:
            raise BadRecord(Fault.CONFLICT, f"The record has {twice} beside its body and in it.")
        return {**beside, **asked.record}, own

    def _own(self, how: Mapping[str, Any]) -> Any:
        """Return the plan of a request with parameters of its own. Raises `BadRecord`."""
        key = dump_json(how, sort_keys=True)
        plan = self._plans.pop(key, None)
        if plan is None:
            try:
                plan = self._plan(how)
            except InvalidInput as error:
                raise BadRecord(Fault.INVALID_INPUT, str(error)) from error
            if how.get("model") != (self._how or {}).get("model"):
                raise BadRecord(
                    Fault.CONFLICT,
                    f"model differs from {self._first}. All requests of one run need the same "
                    "model; put this one into another file or run.",
                )
        self._plans[key] = plan
        if len(self._plans) > KEPT_PLANS:
            self._plans.popitem(last=False)
        return plan

    def _asked(self, record: Mapping[str, Any]) -> Asked:
        endpoint = endpoint_of(record["url"])
        if record.get("method", "POST") != "POST" or endpoint is None:
            raise BadRecord(
                Fault.WRONG_TYPE,
                "The request must be a POST to /v1/chat/completions, /v1/responses or "
                "/v1/embeddings.",
            )
        if kind_of_run(endpoint) != self._kind:
            command = COMMANDS[kind_of_run(endpoint)]
            raise BadRecord(
                Fault.WRONG_TYPE,
                f"The request is for {endpoint}; hand it in by `{command}`. Of a file with both "
                f"kinds, `promptstack {command} FILE --skip-bad` takes these and leaves the rest.",
            )
        try:
            return asked_of(endpoint, record["body"])
        except NotHonoured as error:
            raise BadRecord(Fault.WRONG_TYPE, f"The body {error}.") from error

    def _no_request(self, record: Mapping[str, Any]) -> BadRecord:
        """Say why a record is no request, in a source of requests."""
        for name, kind, wanted in (("url", str, "a string"), ("body", Mapping, "an object")):
            value = record.get(name)
            if value is None:
                return BadRecord(
                    Fault.MISSING_FIELD,
                    f"The record has no '{name}'; {self._first} is a request, so all must be.",
                )
            if not isinstance(value, kind):
                reason = f"The field '{name}' must be {wanted}, and is {kind_of(value)}."
                return BadRecord(Fault.WRONG_TYPE, reason)
        name = next(name for name in INPUTS if record.get(name) is not None)
        return BadRecord(Fault.CONFLICT, f"The record has {name} beside its body; keep one.")


def kind_of_requests(records: Iterable[Placed]) -> str:
    """Return the kind of run of the first request. Raises `InvalidInput` if there is none."""
    for _, record in records:
        endpoint = endpoint_of(record["url"]) if is_request(record) else None
        if endpoint is not None:
            return kind_of_run(endpoint)
    raise InvalidInput(
        f"None of the first {LOOKED_AT} lines is a request (custom_id, method, url, body) to "
        "/v1/chat/completions, /v1/responses or /v1/embeddings; use `runs generate` or "
        "`runs embed`."
    )


def is_request(record: Any) -> bool:
    """Tell whether a record is a request, without an input beside its body."""
    return (
        isinstance(record, Mapping)
        and isinstance(record.get("body"), Mapping)
        and isinstance(record.get("url"), str)
        and all(record.get(name) is None for name in INPUTS)
    )


def _is_broken_request(record: Any) -> bool:
    """Tell whether a record is a request with a fault, so that the search goes on after it."""
    return (
        isinstance(record, Mapping)
        and ("url" in record or "body" in record)
        and all(record.get(name) is None for name in INPUTS)
    )


def records_of_lines(blocks: Iterable[bytes], reading: Reading) -> Iterator[Placed]:
    """Yield the first readable records of JSON Lines, none of them larger than is read."""
    longest, values = longest_line(reading), reading.bounds.record_values
    for number, line in islice(physical_lines(_head(blocks, longest), longest), LOOKED_AT):
        if line is None or has_more(line, STRUCTURE, TEXT_IN_JSON, values):
            continue
        with suppress(JSONDecodeError, NotExact):
            yield f"line {number}", load_json(line, "The line")


def records_of_items(items: Iterable[Any]) -> Iterator[Placed]:
    """Yield the first records of a list, as JSON."""
    for number, item in enumerate(islice(items, LOOKED_AT), 1):
        with suppress(BadRecord, RecursionError):
            yield f"item {number}", as_json(item)


def _head(blocks: Iterable[bytes], longest: int) -> Iterator[bytes]:
    """The beginning, with the whole first line if that can be read at all."""
    size, has_line = 0, False
    for block in blocks:
        yield block
        size += len(block)
        has_line = has_line or b"\n" in block
        if size > HEAD_BYTES and (has_line or size > longest):
            return
