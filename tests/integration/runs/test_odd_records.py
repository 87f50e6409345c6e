"""Odd values through every door and out again: kept exactly, or refused before anything is paid."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from sqlalchemy import text

from promptstack.services.execution.generation import result_of
from promptstack.services.export.results import export
from promptstack.services.llm.answers import LLMResponse
from promptstack.services.runs.json_schema.answers import AnswerSchema
from promptstack.services.sources.inputs import BadInput, Input, Reading, read_inputs
from promptstack.services.sources.records import MESSAGES
from promptstack.services.text import make_storable, make_storable_json
from promptstack.services.validation.json_text import dump_json
from promptstack.services.validation.schema_bounds import SchemaBounds
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve
from tests.odd_json import Unkept, is_kept, meant, records, same, values
from tests.runs import work

AT_ONCE = 40
RUNS = max(1, int(os.environ.get("ODD_EXAMPLES", "300")) // AT_ONCE)
"""Of many records each; `ODD_EXAMPLES=20000` looks longer."""
FEW = max(20, RUNS)
JSON = {"Content-Type": "application/json"}
odd = effort(
    max_examples=RUNS,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # to look for the smallest takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
lines = st.lists(records(), min_size=AT_ONCE, max_size=AT_ONCE)
SIMPLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(2**1000, 2**1100),
    st.floats(),
    st.text(),
    st.binary(),
    st.decimals(),
    st.datetimes(),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.complex_numbers(),
    st.sampled_from([np.float32(0.1), np.int64(5), np.array([1.5])]),
)
python_names = st.text(max_size=2) | st.integers(0, 2) | st.none() | st.binary(max_size=2)
python_values = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner),
        st.sets(st.integers(), max_size=2),
        st.dictionaries(python_names, inner, max_size=3),
    ),
    max_leaves=6,
)


@pytest.fixture
def client(stack: WorkerServices) -> Iterator[TestClient]:
    with serve(stack) as client:
        yield client


@odd
@given(lines)
def test_a_line_is_kept_exactly_or_refused(
    stack: WorkerServices, tmp_path: Path, given_lines: list[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(as_bytes("\n".join(given_lines)))
    run = stack.runs.generate(source, provider="demo", skip_bad=True)
    refused = {one.position: one for one in stack.run_results.failed(run.id)}
    work(stack, run.id)
    came = exported(stack, run.id, tmp_path)
    assert came.keys() | refused.keys() == set(range(1, AT_ONCE + 1))
    for position, line in enumerate(given_lines, 1):
        try:
            wanted = meant(line)
        except Unkept:
            assert position in refused, line
            assert refused[position].error, line
            continue
        if is_good(wanted):
            assert position in came or refused[position].code == "DUPLICATE_ID", line
        if position in came:
            kept = metadata_of(wanted)
            assert all(same(metadata, kept) for metadata in came[position]), (line, came[position])


@effort(odd, max_examples=FEW)
@given(st.lists(records(), min_size=2, max_size=2))
def test_items_in_a_body_are_kept_exactly_or_refused(
    stack: WorkerServices, client: TestClient, items: list[str]
) -> None:
    body = f'{{"provider": "demo", "skip_bad": true, "items": ["good", {", ".join(items)}]}}'
    found = client.post("/api/v1/runs/generations", content=as_bytes(body), headers=JSON)
    if is_refused(found):
        assert not all(map(is_kept, items)), found.text
        return
    run_id = found.json()["id"]
    work(stack, UUID(run_id))
    pages = [
        json.loads(client.get(f"/api/v1/runs/{run_id}/{part}").content)[part]
        for part in ("results", "failures")
    ]
    came, refused = ({row["position"]: row for row in page} for page in pages)
    assert came.keys() | refused.keys() == {1, 2, 3}
    for position, item in enumerate(items, 2):
        if position in came:
            assert same(came[position]["metadata"], metadata_of(meant(item))), item
        elif is_kept(item):
            assert not is_good(meant(item)) or refused[position]["code"] == "DUPLICATE_ID", item


@effort(odd, max_examples=FEW)
@given(values, values, values)
def test_what_a_job_carries_is_kept_exactly_or_refused(
    stack: WorkerServices, client: TestClient, option: str, argument: str, parameter: str
) -> None:
    call = f'{{"id": "1", "name": "f", "arguments": {{"a": {argument}}}}}'
    tool = f'{{"name": "f", "parameters": {{"default": {parameter}}}}}'
    turn = f'{{"role": "assistant", "tool_calls": [{call}]}}'
    body = (
        f'{{"provider": "openai", "options": {{"a": {option}}}, "tools": [{tool}], '
        f'"messages": [{{"role": "user", "content": "x"}}, {turn}]}}'
    )
    found = client.post("/api/v1/generations", content=as_bytes(body), headers=JSON)
    if is_refused(found):
        # A schema has a bound of its own, and `default` stands one level down in it.
        is_deep = "MAX_SCHEMA_DEPTH" in found.text
        assert is_deep or not all(map(is_kept, (option, argument, parameter))), found.text
        return
    with stack.ledger.transaction() as unit:
        job = unit.jobs.get(UUID(found.json()["id"]))
        assert job is not None
        asked = job.request
    kept = [asked["options"], asked["messages"][1]["tool_calls"][0]["arguments"]]
    assert same(kept, [{"a": json.loads(option)}, {"a": json.loads(argument)}])
    assert same(asked["tools"][0]["parameters"], {"default": json.loads(parameter)})


@odd
@given(st.lists(values, min_size=AT_ONCE, max_size=AT_ONCE))
def test_answers_under_a_schema_are_kept_exactly_or_told(
    stack: WorkerServices, tmp_path: Path, said: list[str]
) -> None:
    schema = AnswerSchema({}, SchemaBounds())
    good = []
    for value in map(make_storable, said):
        answer = LLMResponse(value, "m", 1, 1, finish_reason="stop")
        fault = schema.validate(answer)
        if fault is None:
            good.append(answer)
        else:
            assert fault.detail == value
            assert not is_kept(value), fault
    run = next(iter(stack.runs.get_many()), None)
    if run is None:  # the others of this test take its place
        run = stack.runs.generate(list(map(str, range(AT_ONCE))), provider="demo")
        work(stack, run.id)
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("DELETE FROM answers"))
        hashes = text("SELECT content_hash FROM items WHERE run_id = :run ORDER BY position")
        contents = map(bytes, unit.session.scalars(hashes, {"run": run.id}))
        stored = [{**result_of(answer), "json": schema.read(answer)} for answer in good]
        unit.answers.store("demo", run.model, dict(zip(contents, stored, strict=False)))
    rows = list(stack.run_results.produced(run.id))
    assert len(rows) == len(good)
    for row, answer in zip(rows, good, strict=True):
        assert row.answer is not None
        # A NUL and the like was replaced, as an answer is paid for.
        assert same(row.answer["json"], make_storable_json(json.loads(answer.text)))
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        done = export(tmp_path / name, rows, [])
        assert (done.items, done.unwritten) == (len(good), 0)


@effort(odd, max_examples=FEW)
@given(st.lists(python_values, max_size=3), st.binary(max_size=4))
def test_values_of_python_are_kept_as_json_or_refused(parts: list[Any], raw: bytes) -> None:
    given_records: list[Any] = [{"text": "x", "a": part} for part in parts]
    given_records += [{"text": raw}, "fine"]
    found = list(read_inputs(given_records, Reading()))
    assert [one.position for one in found] == list(range(1, len(given_records) + 1))
    assert isinstance(found[-1], Input)
    for one in found:
        if isinstance(one, BadInput):
            assert one.reason
        else:
            assert same(json.loads(dump_json(one.metadata)), one.metadata)


def is_good(record: dict[str, Any]) -> bool:
    """Whether a run must take it."""
    return (
        isinstance(record["text"], str)
        and bool(record["text"].strip())
        and "custom_id" not in record
        and not {"id", "prompt", MESSAGES} & record.keys()
    )


def metadata_of(record: dict[str, Any]) -> dict[str, Any]:
    """What is kept beside the text and the id."""
    used = {"text"} if record.get("custom_id") is None else {"text", "custom_id"}
    return {name: part for name, part in record.items() if name not in used}


def is_refused(response: Response) -> bool:
    """Whether it is, in a sentence that says why."""
    if response.status_code == 202:
        return False
    code = {422: "INVALID_INPUT", 400: "BAD_REQUEST"}[response.status_code]
    return bool(problem(response, response.status_code, code))


def as_bytes(body: str) -> bytes:
    return body.encode("utf-8", "surrogatepass")


def exported(stack: WorkerServices, run_id: UUID, folder: Path) -> dict[int, list[Any]]:
    """The metadata of each result, from every kind of output."""
    found: dict[int, list[Any]] = {
        one.position: [one.metadata] for one in stack.run_results.produced(run_id)
    }
    paths = [folder / name for name in ("out.jsonl", "out.csv", "out.parquet")]
    for path in paths:
        done = export(path, stack.run_results.produced(run_id), stack.run_results.failed(run_id))
        assert (done.items, done.unwritten) == (len(found), 0)
    rows = list(map(json.loads, paths[0].read_bytes().splitlines()))
    with paths[1].open(newline="") as file:
        rows += list(csv.DictReader(file))
    rows += pq.read_table(paths[2]).to_pylist()
    for row in rows:
        metadata = row["metadata"]
        found[int(row["position"])].append(
            json.loads(metadata) if isinstance(metadata, str) else metadata
        )
    assert all(len(metadata) == len(paths) + 1 for metadata in found.values())
    return found
