"""What a caller sends costs no more than was bounded beforehand, and nobody else pays for it.

One server, one hostile caller after the other; meanwhile a monitor asks `/healthz`, and another
user's job is done.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen
from uuid import UUID

import psutil
import pytest

from promptstack.tasks.composition import PromptStack
from tests.doors import Door
from tests.processes import Process, join, wait_until

HEALTHY_SECONDS = 12.0
"""On a machine that is busy with other tests: 1 s where it has nothing else to do."""
MEMORY = 300_000_000


@dataclass
class Monitor:
    """Asks for the server's health all the time, and keeps the worst."""

    url: str
    pid: int
    longest: float = 0.0
    refused: list[str] = field(default_factory=list)
    memory: int = 0

    def __post_init__(self) -> None:
        self._stopped = threading.Event()
        self._process = psutil.Process(self.pid)
        self.memory = self._process.memory_info().rss
        self.most = self.memory
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Monitor":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        join(self._thread)

    def _run(self) -> None:
        while not self._stopped.wait(0.02):
            began = time.monotonic()
            try:
                with urlopen(f"{self.url}/healthz", timeout=30) as answer:
                    answer.read()
            except (URLError, OSError) as error:
                self.refused.append(str(error))
            self.longest = max(self.longest, time.monotonic() - began)
            self.most = max(self.most, self._process.memory_info().rss)


def bomb_schema() -> dict[str, Any]:
    """40 definitions, each of twice the next: 2**40 in full."""
    defs: dict[str, Any] = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)
    }
    defs["d40"] = {"type": "object"}
    return {"$defs": defs, "$ref": "#/$defs/d0"}


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


GENERATION, EMBEDDINGS = "/api/v1/runs/generations", "/api/v1/runs/embeddings"
ONE = "/api/v1/generations"
OPENAI = {"provider": "openai"}
HOSTILE: dict[str, tuple[str, Callable[[], Any]]] = {
    "a schema that doubles 40 times": (
        GENERATION,
        lambda: {"items": ["x"], **OPENAI, "json_schema": bomb_schema()},
    ),
    "the same of a single job": (
        ONE,
        lambda: {"prompt": "x", **OPENAI, "json_schema": bomb_schema()},
    ),
    "a pattern of 100,000 alternatives": (
        GENERATION,
        lambda: {
            "items": ["x"],
            **OPENAI,
            "json_schema": {
                "type": "string",
                "pattern": "|".join(f"word{n}" for n in range(100_000)),
            },
        },
    ),
    "20,000 properties": (
        GENERATION,
        lambda: {
            "items": ["x"],
            **OPENAI,
            "json_schema": {
                "type": "object",
                "properties": {f"p{n}": {"type": "string"} for n in range(20_000)},
            },
        },
    ),
    "a template of 50,000 places": (
        GENERATION,
        lambda: {"items": [{"text": "x" * 100_000}], **OPENAI, "template": "{text}" * 50_000},
    ),
    "a template that makes much of little": (
        GENERATION,
        lambda: {"items": [{"text": "x" * 9_000_000}], **OPENAI, "template": "{text}" * 200},
    ),
    "700,000 fields in options": (
        ONE,
        lambda: {"prompt": "x", **OPENAI, "options": {f"{n}": 1 for n in range(700_000)}},
    ),
    "options without a bottom": (ONE, lambda: {"prompt": "x", **OPENAI, "options": deep(900)}),
    "12 MB of integers": (EMBEDDINGS, lambda: {"items": [1] * 3_900_000}),
    "500,000 bad items": (EMBEDDINGS, lambda: {"items": [{"x": 1}] * 500_000}),
    "tools with a bomb": (
        ONE,
        lambda: {
            "prompt": "x",
            **OPENAI,
            "tools": [{"name": "f", "description": "", "parameters": bomb_schema()}],
        },
    ),
}
MAY_BE_ACCEPTED = {"tools with a bomb", "the same of a single job"}
"""What is handed on to the provider as it is, and not judged by anybody here."""


@pytest.fixture
def door(environment: dict[str, str], stack: PromptStack, tmp_path: Path) -> Iterator[Door]:
    with Door(tmp_path / "door.log") as opened:
        yield opened


def post(door: Door, path: str, body: bytes, key: str | None) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    request = Request(door.url + path, body, headers)
    try:
        with urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except HTTPError as refusal:
        with refusal:
            return refusal.code, json.load(refusal)


def is_done(stack: PromptStack, job_id: UUID) -> bool:
    return stack.jobs.get(job_id).state.is_final


def test_nothing_that_a_caller_sends_stops_the_server_or_others(
    door: Door, stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    start_worker()
    hostile = stack.keys.create("mallory@example.org", "mallory")
    other = stack.keys.create("ada@example.org", "ada")
    post(door, ONE, b'{"prompt": "warm up"}', other)
    jobs: list[UUID] = []
    for name, (path, make) in HOSTILE.items():
        body = json.dumps(make()).encode()
        with Monitor(door.url, door.process.pid) as monitor:
            status, answer = post(door, path, body, hostile)
            _, job = post(door, ONE, b'{"prompt": "from another user"}', other)
        said = f"{name}: {status} {str(answer)[:300]}"
        assert status in {413, 422} or (name in MAY_BE_ACCEPTED and status == 202), said
        assert monitor.refused == [], said
        assert monitor.longest < HEALTHY_SECONDS, f"{monitor.longest:.1f} s; {said}"
        assert monitor.most - monitor.memory < MEMORY, f"{monitor.most:,} bytes; {said}"
        jobs.append(UUID(job["id"]))
    for job_id in jobs:
        wait_until(partial(is_done, stack, job_id), "the jobs of another user")


def test_a_body_is_not_looked_at_for_a_caller_without_a_key(door: Door) -> None:
    body = json.dumps({"items": [1] * 4_000_000}).encode()
    with Monitor(door.url, door.process.pid) as monitor:
        for _ in range(3):
            with suppress(URLError, OSError):  # it may hang up while we are still sending
                assert post(door, EMBEDDINGS, body, None)[0] == 401
    assert monitor.longest < HEALTHY_SECONDS
    assert monitor.refused == []


def test_requests_that_are_never_finished_are_ended(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REQUEST_READ_SECONDS", "2")
    with Door(tmp_path / "door.log") as door:
        address = urlsplit(door.url)
        half = f"POST {ONE} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Le".encode()
        opened = [socket.create_connection((address.hostname, address.port)) for _ in range(100)]
        for connection in opened:
            connection.settimeout(60.0)
            connection.sendall(half)
        with Monitor(door.url, door.process.pid) as monitor:
            for connection in opened:
                while connection.recv(4_096):
                    pass
                connection.close()
        assert monitor.longest < HEALTHY_SECONDS
        assert monitor.refused == []
