"""A client that was made for the last release goes on working."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from promptstack.api.http.description import describe
from promptstack.config.settings import Settings
from tests.descriptions import Comparison
from tests.processes import ROOT

Document = dict[str, Any]
RELEASED = ROOT / "tests" / "released" / "openapi.json"
"""What `promptstack openapi` printed at the last release; it is renewed with each."""
JOB, JOBS, GENERATIONS = "/api/v1/jobs/{job_id}", "/api/v1/jobs", "/api/v1/generations"


@pytest.fixture(scope="module")
def now() -> Document:
    return describe(Settings(_env_file=None))


def schema(document: Document, name: str) -> Document:
    found: Document = document["components"]["schemas"][name]
    return found


def put(document: Document, name: str, field: str, value: Any) -> None:
    schema(document, name)["properties"][field] = value


BREAKING: dict[str, Callable[[Document], object]] = {
    "path gone": lambda new: new["paths"].pop(JOB),
    "method gone": lambda new: new["paths"][JOBS].pop("get"),
    "other name": lambda new: new["paths"][JOBS]["get"].update(operationId="x"),
    "parameter gone": lambda new: new["paths"][JOBS]["get"]["parameters"].pop(),
    "parameter required": lambda new: new["paths"][JOBS]["get"]["parameters"][0].update(
        required=True
    ),
    "other status": lambda new: new["paths"][GENERATIONS]["post"]["responses"].pop("202"),
    "answer lacks a field": lambda new: schema(new, "JobView")["required"].remove("state"),
    "answer of another type": lambda new: put(new, "JobView", "attempt", {"type": "string"}),
    "answer may be null": lambda new: put(
        new, "JobView", "attempt", {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    ),
    "answer has a new state": lambda new: schema(new, "JobState")["enum"].append("x"),
    "field required": lambda new: schema(new, "KeyTerms")["required"].append("scopes"),
    "field gone": lambda new: schema(new, "KeyTerms")["properties"].pop("scopes"),
    "shorter text": lambda new: schema(new, "KeyTerms")["properties"]["name"].update(maxLength=9),
    "value gone": lambda new: schema(new, "NotifyEvent")["enum"].remove("run_failed"),
}
FINE: dict[str, Callable[[Document], object]] = {
    "nothing": lambda new: None,
    "path": lambda new: new["paths"].update({"/x": new["paths"][JOBS]}),
    "field of an answer": lambda new: put(new, "JobView", "x", {"type": "string"}),
    "optional field": lambda new: put(new, "KeyTerms", "x", {"type": "string"}),
    "longer text": lambda new: schema(new, "KeyTerms")["properties"]["name"].update(maxLength=999),
}


def test_clients_of_the_last_release_can_use_this_one(now: Document) -> None:
    assert list(Comparison(json.loads(RELEASED.read_text()), now).faults()) == []


@pytest.mark.parametrize("change", BREAKING.values(), ids=BREAKING)
def test_what_breaks_clients_is_found(now: Document, change: Callable[[Document], object]) -> None:
    new = deepcopy(now)
    change(new)
    assert list(Comparison(now, new).faults())


@pytest.mark.parametrize("change", FINE.values(), ids=FINE)
def test_what_breaks_nothing_is_let_through(
    now: Document, change: Callable[[Document], object]
) -> None:
    new = deepcopy(now)
    change(new)
    assert not list(Comparison(now, new).faults())
