"""Lines as OpenAI's Batch API takes them: `custom_id`, `method`, `url` and `body`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from json import JSONDecodeError
from typing import Any

from services.errors import InvalidInput
from services.json_text import NotExact, load_json
from services.llm.openai_bodies import Asked, NotHonoured, asked_of, endpoint_of, kind_of_run
from services.sources.lines import physical_lines
from services.sources.plain import as_json
from services.sources.reading import BadRecord, Fault

LOOKED_AT = 100
"""Records among which the first good one is looked for."""
HEAD_BYTES = 1_048_576
"""So far the source is looked at; its blocks are in memory meanwhile."""
FORM = frozenset({"method", "url", "body"})
COMMANDS = {"generation": "runs generate", "embedding": "runs embed"}


class BatchLines:
    """What the requests of one source ask for, which is to be the same but for their inputs.

    A run asks all its items alike. The first line that can be asked for says how; another one that
    asks otherwise is refused by its line.
    """

    def __init__(self, kind: str, plan: Callable[[Mapping[str, Any]], Any]) -> None:
        """Take the kind of the run, and a `plan` that raises `InvalidInput` for what can't be."""
        self._kind = kind
        self._plan = plan
        self._how: Mapping[str, Any] | None = None

    def agree(self, records: Iterable[Any]) -> Any:
        """Return the plan of the first request that can be asked; else that of no request."""
        for record in records:
            if not is_request(record):
                break
            with suppress(InvalidInput):
                how = self._asked(record).how
                plan = self._plan(how)
                self._how = how
                return plan
        return self._plan({})

    def unfold(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a request as the record that it stands for; others as they are.

        Raises `BadRecord`.
        """
        if not is_request(record):
            if self._how is None:
                return record
            raise BadRecord(
                Fault.CONFLICT, "The record has no 'url' and 'body' like those before it."
            )
        asked = self._asked(record)
        if asked.how != (self._how or {}):
            try:
                self._plan(asked.how)
            except InvalidInput as error:
                raise BadRecord(Fault.CONFLICT, str(error)) from error
            raise BadRecord(
                Fault.CONFLICT,
                f"The body asks for {self._difference(asked.how)} otherwise than the first one; a "
                "run asks all alike, so hand it in as another run.",
            )
        beside = {name: record[name] for name in record if name not in FORM}
        twice = next((name for name in asked.record if beside.get(name) is not None), None)
        if twice is not None:
            raise BadRecord(Fault.CONFLICT, f"The record has {twice} beside its body and in it.")
        return {**beside, **asked.record}

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
                Fault.WRONG_TYPE, f"The request is for {endpoint}; hand it in by `{command}`."
            )
        try:
            return asked_of(endpoint, record["body"])
        except NotHonoured as error:
            raise BadRecord(Fault.WRONG_TYPE, f"The body {error}.") from error

    def _difference(self, how: Mapping[str, Any]) -> str:
        first = self._how or {}
        names = [name for name in {**first, **how} if first.get(name) != how.get(name)]
        return ", ".join(names).replace("provider_options", "what only OpenAI knows")


def kind_of_requests(records: Iterable[Any]) -> str:
    """Which kind of run the first request is for. Raises `InvalidInput` where there is none."""
    for record in filter(is_request, records):
        endpoint = endpoint_of(record["url"])
        if endpoint is not None:
            return kind_of_run(endpoint)
    raise InvalidInput(
        f"None of the first {LOOKED_AT} lines is a request (custom_id, method, url, body) to "
        "/v1/chat/completions, /v1/responses or /v1/embeddings; use `runs generate` or "
        "`runs embed`."
    )


def is_request(record: Any) -> bool:
    """Whether a record has the form, and no input of its own."""
    return (
        isinstance(record, Mapping)
        and isinstance(record.get("body"), Mapping)
        and isinstance(record.get("url"), str)
        and all(record.get(name) is None for name in ("text", "prompt", "messages"))
    )


def records_of_lines(blocks: Iterable[bytes]) -> Iterator[Any]:
    """The first records of JSON Lines that can be read."""
    for _, line in islice(physical_lines(_head(blocks), HEAD_BYTES), LOOKED_AT):
        with suppress(JSONDecodeError, NotExact):
            yield load_json(line or b"", "The line")


def records_of_items(items: Iterable[Any]) -> Iterator[Any]:
    """The first ones of a list, as JSON has them."""
    for item in islice(items, LOOKED_AT):
        with suppress(BadRecord, RecursionError):
            yield as_json(item)


def _head(blocks: Iterable[bytes]) -> Iterator[bytes]:
    size = 0
    for block in blocks:
        yield block
        size += len(block)
        if size > HEAD_BYTES:
            return
