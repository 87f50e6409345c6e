"""A schema beyond a bound is refused at every door, and costs nobody anything."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from promptstack.api.cli.main import build
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve
from tests.processes import join
from tests.runs import in_ledger
from tests.unit.runs.test_schema_bounds import BOUNDS, TOO_MUCH, bomb, named

ALTERNATIVES = "|".join(f"word{n}" for n in range(100_000))
HEALTH_SECONDS = 1.0
DOORS: dict[str, dict[str, Any]] = {
    "generations": {"prompt": "x"},
    "runs/generations": {"items": ["x"]},
}


@pytest.fixture
def client(stack: WorkerServices) -> Iterator[TestClient]:
    with serve(stack) as client:
        yield client


def rows(stack: WorkerServices) -> int:
    found = in_ledger(stack, "SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM runs)")
    return int(found)


@pytest.mark.parametrize("door", DOORS)
def test_a_schema_beyond_a_bound_is_refused(
    stack: WorkerServices, client: TestClient, door: str
) -> None:
    for name, make in TOO_MUCH.items():
        schema = make(getattr(BOUNDS, name))
        body: dict[str, Any] = {"provider": "openai", **DOORS[door]}
        # A single generation's answer is not judged, so there nobody follows its references.
        if (door, name) != ("generations", "expanded"):
            response = client.post(f"/api/v1/{door}", json={**body, "json_schema": schema})
            said = problem(response, 422, "INVALID_INPUT")["detail"]
            assert f"MAX_SCHEMA_{name.upper()}" in said
        if name != "expanded":
            tools = [{"name": "a", "parameters": {}}, {"name": "b", "parameters": schema}]
            response = client.post(f"/api/v1/{door}", json={**body, "tools": tools})
            problem(response, 422, "INVALID_INPUT")
    assert rows(stack) == 0


@pytest.mark.parametrize(
    "schema",
    [bomb(40), {"pattern": ALTERNATIVES}, {"properties": named(20_000)}, {"enum": [[]] * 900_000}],
    ids=["forty levels", "100,000 alternatives", "20,000 properties", "900,000 values"],
)
def test_the_server_answers_others_while_it_refuses_one(
    client: TestClient, schema: dict[str, Any]
) -> None:
    body = json.dumps({"provider": "openai", "items": ["x"], "json_schema": schema})
    headers = {"Content-Type": "application/json"}
    codes: list[int] = []

    def send() -> None:
        response = client.post("/api/v1/runs/generations", content=body, headers=headers)
        codes.append(response.status_code)

    sending = threading.Thread(target=send)
    waited = [0.0]
    sending.start()
    while sending.is_alive():
        begun = time.perf_counter()
        assert client.get("/healthz").status_code == 200
        waited.append(time.perf_counter() - begun)
    join(sending)
    assert codes == [422]
    assert max(waited) < HEALTH_SECONDS * 4  # the machine may be that much slower


UNFIT = {
    json.dumps(TOO_MUCH["nodes"](BOUNDS.nodes)): "MAX_SCHEMA_NODES",
    json.dumps({"pattern": ALTERNATIVES}): "MAX_SCHEMA_PATTERN_CHARACTERS",
    '{"items":' * 60 + "{}" + "}" * 60: "MAX_SCHEMA_DEPTH",
    '{"items":' * 100_000 + "{}" + "}" * 100_000: "JSON schema",
    "[]": "an object is needed",
    "": "an object is needed",
}


@pytest.mark.parametrize("command", [["generate", "x"], ["runs", "generate", "x.jsonl"]])
def test_the_command_line_refuses_it_in_a_sentence(
    stack: WorkerServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").write_text('{"prompt": "x"}\n')
    for content, said in UNFIT.items():
        Path("schema.json").write_text(content)
        asked = [*command, "--provider", "openai", "--json-schema", "schema.json"]
        result = CliRunner().invoke(build(), asked)
        assert result.exit_code == 2, (result.output, result.exception)
        assert said in " ".join(result.stderr.split())
    assert rows(stack) == 0


@pytest.mark.parametrize("option", ["--json-schema", "--tools"])
def test_a_file_without_end_is_not_read_to_its_end(stack: WorkerServices, option: str) -> None:
    result = CliRunner().invoke(build(), ["generate", "x", option, "/dev/zero"])
    assert (result.exit_code, "bytes" in result.stderr) == (2, True)
