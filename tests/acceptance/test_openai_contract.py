"""OpenAI's own description of its API judges our answers, by schemathesis, a stranger's program.

The description has only good answers, so each call here is a good one; what is refused has the form
that OpenAI's own clients read (tests/integration/openai/test_errors.py).
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import jsonschema
import pytest
import schemathesis
from schemathesis import Case
from schemathesis.core import NOT_SET
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import response_schema_conformance
from schemathesis.specs.openapi.schemas import OpenApiSchema

from promptstack.simulator.process import SimulatorProcess
from promptstack.tasks.worker_services import WorkerServices
from tests.acceptance.openai_description import SERVED, described
from tests.doors import Door
from tests.processes import Process

GPT = "gpt-5-mini"
EMBEDDING = "text-embedding-3-small"
CHAT = "/v1/chat/completions"
JSON = "application/json"
FORM = "multipart/form-data"
TURNS = [{"role": "user", "content": "Say 1."}]
NOBODY = "0" * 12 + "7000" + "8" + "0" * 15
"""Of an id that nobody has."""
ENDS = {"completed", "failed", "expired", "cancelled"}


class Judge:
    """Calls the server as one user, and has each answer judged."""

    def __init__(self, description: dict[str, Any], url: str, key: str) -> None:
        self.description = description
        self.url = url
        self.key = key
        self.judged: set[tuple[str, str]] = set()

    @cached_property
    def schema(self) -> OpenApiSchema:
        schema = schemathesis.openapi.from_dict(self.description)
        schema.config.update(base_url=self.url)
        return schema

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        kind: str = JSON,
        *,
        ids: dict[str, str] | None = None,
        query: dict[str, Any] | None = None,
    ) -> tuple[Case[Any], Response]:
        """Send a call that is not judged."""
        case = self.schema[path][method].Case(
            path_parameters=ids or {},
            query=query or {},
            body=NOT_SET if body is None else body,
            media_type=None if body is None else kind,
        )
        headers = {"Authorization": f"Bearer {self.key}"}
        return case, case.call(headers=headers, timeout=60)

    def send(self, method: str, path: str, *given: Any, **more: Any) -> Response:
        """Send a call; its answer has OpenAI's form, or this fails."""
        case, response = self.ask(method, path, *given, **more)
        assert response.status_code == 200, f"{method} {path}: {response.text}"
        case.validate_response(response, checks=[response_schema_conformance])
        self.judged.add((path, method.lower()))
        return response

    def call(self, method: str, path: str, *given: Any, **more: Any) -> Any:
        """The JSON of an answer."""
        return json.loads(self.send(method, path, *given, **more).content)

    def events(self, path: str, body: Any, name: str, **more: Any) -> list[Any]:
        """The events of a stream, each judged by a schema of the description."""
        response = self.send("POST" if body else "GET", path, body, **more)
        assert response.headers["content-type"][0].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
        events = [json.loads(line) for line in lines if line.startswith("{")]
        schema = {"$ref": f"#/components/schemas/{name}", **self.description}
        validator = jsonschema.Draft202012Validator(schema)
        for event in events:
            validator.validate(event)
        return events

    def upload(self, content: bytes, purpose: str = "batch") -> Any:
        return self.call("POST", "/files", {"file": content, "purpose": purpose}, FORM)

    def begin(self, content: bytes) -> Any:
        """A batch of chats."""
        file = self.upload(content)
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        return self.call("POST", "/batches", body)

    def until(self, path: str, ids: dict[str, str], ends: set[str]) -> Any:
        """An object that has come to one of these statuses; each look is judged."""
        deadline = time.monotonic() + 60
        while (seen := self.call("GET", path, ids=ids))["status"] not in ends:
            assert time.monotonic() < deadline, seen
            time.sleep(0.1)
        return seen

    def finish(self, batch: Any) -> Any:
        """A batch at its end."""
        return self.until("/batches/{batch_id}", {"batch_id": batch["id"]}, ENDS)


def line(number: int, **more: Any) -> bytes:
    """A line of a batch's input."""
    body = {"model": GPT, "messages": TURNS, **more}
    row = {"custom_id": f"c{number}", "method": "POST", "url": CHAT, "body": body}
    return json.dumps(row).encode() + b"\n"


@pytest.fixture(scope="session")
def description(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return described(tmp_path_factory.mktemp("description"))


@pytest.fixture
def url(
    simulator: SimulatorProcess,
    open_door: Callable[..., Door],
    start_worker: Callable[..., Process],
) -> str:
    start_worker()
    return f"{open_door().url}/openai/v1"


@pytest.fixture
def judge(description: dict[str, Any], url: str, stack: WorkerServices) -> Judge:
    return Judge(description, url, stack.keys.create("ada@example.org", "Ada"))


def about_files(judge: Judge) -> None:
    judge.call("GET", "/files")
    ids = {"file_id": judge.upload(b"one\n", "user_data")["id"]}
    judge.call("GET", "/files")
    judge.call("GET", "/files", query={"limit": 1, "order": "asc", "purpose": "user_data"})
    judge.call("GET", "/files/{file_id}", ids=ids)
    judge.send("GET", "/files/{file_id}/content", ids=ids)
    judge.call("DELETE", "/files/{file_id}", ids=ids)


def about_batches(judge: Judge) -> None:
    judge.call("GET", "/batches")
    done = judge.finish(judge.begin(line(1) + line(2)))
    assert (done["status"], done["request_counts"]["completed"]) == ("completed", 2)
    for file_id in (done["output_file_id"], done["input_file_id"]):
        judge.call("GET", "/files/{file_id}", ids={"file_id": file_id})
    failed = judge.finish(judge.begin(line(1) + line(1)))
    assert (failed["status"], failed["errors"]["data"][0]["line"]) == ("failed", 2)
    batch = judge.begin(b"".join(map(line, range(200))))
    stopping = judge.call("POST", "/batches/{batch_id}/cancel", ids={"batch_id": batch["id"]})
    assert judge.finish(stopping)["status"] == "cancelled"
    judge.call("GET", "/batches", query={"limit": 2})


def about_models(judge: Judge) -> None:
    listed = judge.call("GET", "/models")
    assert GPT in [model["id"] for model in listed["data"]]
    judge.call("GET", "/models/{model}", ids={"model": GPT})


def about_embeddings(judge: Judge) -> None:
    for more in ({}, {"dimensions": 8}, {"input": ["Hi", "Ho"]}):
        judge.call("POST", "/embeddings", {"model": EMBEDDING, "input": "Hi", **more})


def about_chat(judge: Judge) -> None:
    ask = {"model": GPT, "messages": TURNS}
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    for more in ({}, {"tools": [tool]}, {"max_completion_tokens": 2}):
        judge.call("POST", "/chat/completions", {**ask, **more})
    streamed = {**ask, "stream": True, "stream_options": {"include_usage": True}}
    events = judge.events("/chat/completions", streamed, "CreateChatCompletionStreamResponse")
    assert events[-1]["usage"]["total_tokens"] > 0


def about_responses(judge: Judge) -> None:
    ask = {"model": GPT, "input": "Say 1."}
    tool = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}
    for more in ({}, {"tools": [tool]}, {"max_output_tokens": 16}, {"instructions": "Be brief."}):
        judge.call("POST", "/responses", {**ask, **more})
    events = judge.events("/responses", {**ask, "stream": True}, "ResponseStreamEvent")
    assert events[-1]["type"] == "response.completed"


def about_background(judge: Judge) -> None:
    ask = {"model": GPT, "input": "Say 1."}
    one = "/responses/{response_id}"
    begun = judge.call("POST", "/responses", {**ask, "background": True})
    ids = {"response_id": begun["id"]}
    assert judge.until(one, ids, {"completed", "failed"})["status"] == "completed"
    judge.call("GET", f"{one}/input_items", ids=ids)
    judge.events(one, None, "ResponseStreamEvent", query={"stream": True}, ids=ids)
    judge.call("DELETE", one, ids=ids)
    slow = judge.call("POST", "/responses", {**ask, "input": "Say 3.", "background": True})
    judge.call("POST", f"{one}/cancel", ids={"response_id": slow["id"]})


PARTS = [about_files, about_batches, about_models, about_embeddings, about_chat, about_responses]
"""What the simulator serves too."""


def test_all_answers_have_the_form_that_openai_describes(judge: Judge) -> None:
    """One server and worker for all, so that it costs little; a fault names its operation."""
    for part in (*PARTS, about_background):
        part(judge)
    served = {(path, method) for path, methods in SERVED.items() for method in methods}
    assert judge.judged == served


def test_all_answers_of_the_simulator_have_it_too(
    description: dict[str, Any], simulator: SimulatorProcess
) -> None:
    simulator.set_latency(0, batch_seconds=1)
    judge = Judge(description, simulator.url, "sk-test")
    for part in PARTS:
        part(judge)


def test_two_users_do_not_see_what_the_other_has(
    description: dict[str, Any], url: str, stack: WorkerServices
) -> None:
    ada, bob = (
        Judge(description, url, stack.keys.create(f"{name}@example.org", name))
        for name in ("ada", "bob")
    )
    batch = ada.finish(ada.begin(line(1)))
    response = ada.call("POST", "/responses", {"model": GPT, "input": "Hi", "background": True})
    files = [batch["input_file_id"], batch["output_file_id"]]

    seen = list(probes(bob, files, batch["id"], response["id"]))
    assert {status for _, status in seen} == {404}, seen
    hers = named(bob, files[0], response["id"])
    assert hers == named(bob, f"file-{NOBODY}", f"resp_{NOBODY}")
    assert {status for status, _ in hers} <= {400, 404}
    assert bob.call("GET", "/files")["data"] == []
    assert bob.call("GET", "/batches")["data"] == []
    # And nothing of hers was touched.
    for file in files:
        ada.call("GET", "/files/{file_id}", ids={"file_id": file})
    assert ada.finish(batch)["status"] == "completed"
    ada.call("GET", "/responses/{response_id}", ids={"response_id": response["id"]})


def probes(judge: Judge, files: list[str], batch: str, response: str) -> Iterator[tuple[str, int]]:
    """What a user is answered of each thing of another's, by each operation that names one."""
    ids = {"file_id": files, "batch_id": [batch], "response_id": [response]}
    for path, methods in SERVED.items():
        for name, ones in ids.items():
            for method, one in itertools.product(methods if f"{{{name}}}" in path else (), ones):
                _, answer = judge.ask(method, path, ids={name: one})
                yield f"{method} {path}", answer.status_code


def named(judge: Judge, file: str, response: str) -> list[tuple[int, str]]:
    """What a user is answered of things that a body names: no more than that they aren't there."""
    begin = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    go_on = {"model": GPT, "input": "Say 1.", "previous_response_id": response}
    answers = [
        judge.ask("post", path, body)[1]
        for path, body in (("/batches", begin), ("/responses", go_on))
    ]
    return [
        (answer.status_code, answer.text.replace(file, "file").replace(response, "response"))
        for answer in answers
    ]
