"""Checks the requests of a batch's file, beside what a run checks of them."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from json import JSONDecodeError
from typing import Any

from promptstack.services.sources.jsonl import physical_lines
from promptstack.services.sources.reading import BadRecord, Fault
from promptstack.services.validation.json_text import NotExact, load_json

LONGEST_LINE = 32_000_000


def first_request(blocks: Iterable[bytes]) -> Mapping[str, Any] | None:
    """Return the first request that names a model."""
    for _, line in physical_lines(blocks, LONGEST_LINE):
        with suppress(JSONDecodeError, NotExact):
            record = load_json((line or b"").removeprefix(b"\xef\xbb\xbf"), "The line")
            if isinstance(record, dict) and _model_of(record) is not None:
                return record
    return None


def first_model(blocks: Iterable[bytes]) -> str | None:
    """Return the model of the first request that names one."""
    first = first_request(blocks)
    return None if first is None else _model_of(first)


def _model_of(record: Mapping[str, Any]) -> str | None:
    body = record.get("body")
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) and model else None


class RequestCheck:
    """Checks that each request has an id, and is for the batch's endpoint and one model."""

    def __init__(self, endpoint: str, model: str | None) -> None:
        self._endpoint = endpoint
        self._model = model

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Check one request. Raises `BadRecord`."""
        for name, kind, what in (
            ("custom_id", str, "a string"),
            ("url", str, "a string"),
            ("body", dict, "an object"),
        ):
            _required(record.get(name), kind, what, name)
        if record.get("method", "POST") != "POST":
            raise BadRecord(Fault.INVALID_METHOD, "The method must be POST.", pointer="/method")
        if record["url"] != self._endpoint:
            raise BadRecord(
                Fault.INVALID_URL,
                f"The url must be {self._endpoint}, as it is the endpoint of the batch.",
                pointer="/url",
            )
        body = record["body"]
        _required(body.get("model"), str, "a string", "body.model")
        if body["model"] != self._model:
            raise BadRecord(
                Fault.MISMATCHED_MODEL,
                "The model is another than the first request's; a batch asks one model.",
                pointer="/body/model",
            )


def _required(value: Any, kind: type, what: str, name: str) -> None:
    pointer = "/" + name.replace(".", "/")
    if value is None or value == "":
        raise BadRecord(Fault.MISSING_FIELD, f"The request has no {name}.", pointer=pointer)
    if not isinstance(value, kind):
        raise BadRecord(Fault.WRONG_TYPE, f"The {name} must be {what}.", pointer=pointer)
