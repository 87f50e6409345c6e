"""The HTTP API as a process of its own, with curl for a caller and a real worker."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from promptstack.tasks.composition import PromptStack
from tests.doors import Door
from tests.processes import PATIENCE, Process, run, wait_until

PROMPT = "Say hello to the world."


def serve_in_vain(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(["-m", "promptstack.api.http", *arguments], os.environ)


def test_a_generation_from_curl_to_its_answer(
    stack: PromptStack, start_worker: Callable[..., Process], open_door: Callable[..., Door]
) -> None:
    door = open_door()
    assert door.curl("/healthz")[1]["workers"] == 0
    start_worker()
    assert door.curl("/healthz") == (
        200,
        {"version": "0.1.0", "database": True, "redis": True, "workers": 1},
    )
    body = ["-H", "Content-Type: application/json", "-d", json.dumps({"prompt": PROMPT})]
    status, refused = door.curl("/api/v1/generations", *body)
    assert (status, refused["code"]) == (401, "NOT_AUTHENTICATED")

    key = ["-H", f"Authorization: Bearer {stack.keys.create('ada@example.org', 'Ada')}"]
    status, job = door.curl("/api/v1/generations", *key, *body)
    assert status == 202
    path = f"/api/v1/jobs/{job['id']}"
    wait_until(lambda: door.curl(path, *key)[1]["state"] == "succeeded", "the job's end")
    assert PROMPT in door.curl(path, *key)[1]["result"]["text"]
    assert door.end() == (0, "")
    assert "hello" not in door.log()


def test_a_body_over_the_limit_is_answered_before_it_is_read(
    stack: PromptStack,
    open_door: Callable[..., Door],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MAX_BODY_BYTES", "100000")
    large = tmp_path / "large.json"
    large.write_bytes(b'"' + b"x" * 30_000_000 + b'"')
    door = open_door()
    key = f"X-API-Key: {stack.keys.create('ada@example.org', 'Ada')}"
    upload = ["-H", key, "-H", "Content-Type: application/json", "--data-binary", f"@{large}"]
    for how in ([], ["-H", "Expect:"], ["-H", "Transfer-Encoding: chunked"]):
        status, problem = door.curl("/api/v1/generations", *upload, *how)
        assert (status, problem["code"]) == (413, "CONTENT_TOO_LARGE")


def test_large_bodies_hold_up_nobody(
    stack: PromptStack, open_door: Callable[..., Door], tmp_path: Path
) -> None:
    door = open_door()
    key = f"X-API-Key: {stack.keys.create('ada@example.org', 'Ada')}"

    def many(numbers: int) -> Path:
        body = tmp_path / f"{numbers}.json"
        inner = ",".join(["1"] * numbers)
        body.write_text(f'{{"prompt": "x", "options": {{"a": [{inner}]}}}}')
        return body

    for numbers, headers, expected in (
        (5_900_000, ["X-Nobody: 1"], 401),
        (5_900_000, [key], 422),
        (900_000, [key], 422),
    ):
        options = [part for header in headers for part in ("-H", header)]
        body = ["-H", "Content-Type: application/json", "--data-binary", f"@{many(numbers)}"]
        with ThreadPoolExecutor(4) as clients:
            sent = [
                clients.submit(door.curl, "/api/v1/generations", *options, *body) for _ in range(3)
            ]
            while not all(answer.done() for answer in sent):
                started = time.monotonic()
                with urllib.request.urlopen(door.url + "/healthz") as health:
                    assert health.status == 200
                assert time.monotonic() - started < 1
        assert [answer.result(PATIENCE)[0] for answer in sent] == [expected] * 3


def test_ctrl_c_ends_it_in_order(open_door: Callable[..., Door]) -> None:
    assert open_door().end(signal.SIGINT) == (0, "")


def test_it_ends_with_its_parent(open_door: Callable[..., Door]) -> None:
    # end() closes its standard input, as the end of a parent does.
    assert open_door("--with-parent").end(signal.SIGCONT) == (0, "")


def test_sigterm_does_not_wait_for_a_database_that_hangs(
    open_door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("DATABASE_URL", f"postgresql://postgres@127.0.0.1:{port}/x")
        monkeypatch.setenv("SHUTDOWN_GRACE_SECONDS", "1")
        door = open_door()
        waiting = subprocess.Popen(
            ["curl", "-sS", "-H", "X-API-Key: ps_x", f"{door.url}/api/v1/jobs"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        silent.settimeout(PATIENCE)
        connection, _ = silent.accept()
        with connection:
            started = time.monotonic()
            assert door.end() == (0, "")
            assert time.monotonic() - started < 4
        waiting.kill()
        waiting.wait(PATIENCE)


@pytest.mark.usefixtures("environment")
def test_a_taken_port_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = serve_in_vain("--port", str(port))
    assert (ended.returncode, ended.stdout) == (2, "")
    expected = f"promptstack api: Cannot listen on 127.0.0.1, port {port}: Address already in use."
    assert ended.stderr.splitlines() == [expected]
    ended = serve_in_vain("--port", "99999")
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    assert serve_in_vain("--host", "nowhere.invalid").returncode == 2
    monkeypatch.setenv("DATABASE_URL", "mysql://x")
    ended = serve_in_vain("--port", "0")
    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1)
