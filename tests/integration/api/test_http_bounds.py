"""What a client can hold up: connections, half-sent requests, bodies that cost much."""

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from promptstack.api.http.app import create_app
from promptstack.api.http.route import (
    LARGE_OF_ONE_USER,
    LARGE_READ_AT_ONCE,
    SMALL_BYTES,
    count_values,
)
from promptstack.api.http.server import Server, make_server
from promptstack.config.settings import Settings
from promptstack.services.validation.json_text import load_json
from promptstack.tasks.composition import PromptStack
from tests.http import problem, serve
from tests.processes import join, wait_until

GENERATIONS = "/api/v1/generations"
PATIENCE = 30.0
HOST = b" HTTP/1.1\r\nHost: localhost\r\n"
HEALTH = b"GET /healthz" + HOST + b"Connection: close\r\n\r\n"
START = b"POST /api/v1/generations" + HOST + b"Content-Type: application/json\r\n"


class Listening:
    """A server in this process, for clients that speak to its socket."""

    def __init__(self, server: Server, port: int, key: str) -> None:
        self._server = server
        self._port = port
        self.key = as_header(key)

    def connections(self) -> int:
        return len(self._server.server_state.connections)

    def requests(self) -> int:
        return len(self._server.server_state.tasks)

    def large_bodies(self) -> int:
        app: Any = self._server.config.app
        return int(app.state.large_bodies.reading.borrowed_tokens)

    @contextmanager
    def connected(self, *sent: bytes) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE) as client:
            client.sendall(b"".join(sent))
            yield client

    def answer(self, *sent: bytes) -> bytes:
        """All that comes until the server closes the connection."""
        with self.connected(*sent) as client:
            return read_all(client)


def as_header(key: str) -> bytes:
    return f"X-API-Key: {key}\r\n".encode()


def read_all(client: socket.socket) -> bytes:
    parts = []
    while part := client.recv(65_536):
        parts.append(part)
    return b"".join(parts)


@contextmanager
def listening(settings: Settings, **changes: object) -> Iterator[Listening]:
    with (
        PromptStack.open(settings.model_copy(update=changes)) as stack,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        key = stack.keys.create("ada@example.org", "Test")
        server = make_server(stack)
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        serving.start()
        try:
            yield Listening(server, listener.getsockname()[1], key)
        finally:
            server.should_exit = True
            join(serving)


def test_a_request_of_which_the_rest_never_comes_is_ended(settings: Settings) -> None:
    with listening(settings, request_read_seconds=1.0) as server:
        assert server.answer() == b""
        for half in (
            (b"GET /healthz HTTP/1.1\r\nHost: local",),
            (b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",),
            (START, server.key, b"Content-Length: 100\r\n\r\n", b'{"prompt": '),
            (START, server.key, b"Content-Length: 100000\r\n\r\n", b'{"prompt": '),
            (START, server.key, b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\n{    \r\n"),
        ):
            answer = server.answer(*half)
            if b"HEAD" not in half[0]:
                assert answer.startswith(b"HTTP/1.1 408 "), answer
                assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["code"] == "REQUEST_TIMEOUT"


def test_the_key_is_checked_before_the_body_is_read_and_the_connection_then_ends(
    settings: Settings,
) -> None:
    with listening(settings, request_read_seconds=2.0) as server:
        for length in (b"Content-Length: 1000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"):
            with server.connected(START, length) as client:
                # None of the body has been sent.
                assert client.recv(65_536).startswith(b"HTTP/1.1 401 ")
                client.sendall(b"1")
                assert b"HTTP" not in read_all(client)


def test_requests_that_follow_each_other_have_their_time_each(settings: Settings) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with listening(settings, request_read_seconds=3.0) as server:
        with server.connected(request) as client:
            for _ in range(20):
                response = HTTPResponse(client)
                response.begin()
                assert response.status == 200
                response.read()
                threading.Event().wait(0.2)  # 4 s in all
                client.sendall(request)
        # Two at once, and half of a third.
        answer = server.answer(request, request, b"GET /healthz HT")
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"200", b"408"]


def test_a_client_that_takes_no_answer_is_cut_off(settings: Settings) -> None:
    request = b"GET /openapi.json" + HOST + b"\r\n"
    with (
        listening(settings, request_read_seconds=1.0) as server,
        server.connected(request * 500) as client,
    ):
        wait_until(lambda: server.connections() == 1, "the connection")
        wait_until(lambda: server.connections() == 0, "its end", PATIENCE)
        # What lay in the kernels' buffers comes still.
        assert 0 < read_all(client).count(b"HTTP/1.1 200") < 500


def test_connections_have_a_bound_and_places_become_free(settings: Settings) -> None:
    with listening(settings, max_connections=3, request_read_seconds=PATIENCE) as server:
        half = (START, server.key, b"Content-Length: 99\r\n\r\n{")
        with (
            server.connected(*half),
            server.connected(*half),
            server.connected(*half),
        ):
            wait_until(lambda: server.requests() == 3, "three requests to be under way")
            with server.connected() as late:
                answer = read_all(late)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"MAX_CONNECTIONS" in answer
        assert server.answer(HEALTH).startswith(b"HTTP/1.1 200 ")


def test_connections_on_which_nothing_comes_shut_nobody_out(settings: Settings) -> None:
    with (
        listening(settings, max_connections=3, request_read_seconds=PATIENCE) as server,
        server.connected(b"GET") as first,
        server.connected(),
        server.connected(),
    ):
        wait_until(lambda: server.connections() == 3, "three connections")
        for _ in range(5):
            assert server.answer(HEALTH).startswith(b"HTTP/1.1 200 ")
        assert b"MAX_CONNECTIONS" in read_all(first)


def test_a_request_with_two_lengths_is_refused(settings: Settings) -> None:
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    with listening(settings) as server:
        for path in (b"GET /healthz", b"POST /api/v1/generations", b"GET /nowhere"):
            start = path + b" HTTP/1.1\r\nHost: localhost\r\n"
            answer = server.answer(start, server.key, both)
            assert answer.startswith(b"HTTP/1.1 400 "), answer
            assert answer.count(b"HTTP/1.1") == 1
        answer = server.answer(b"nonsense\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"application/problem+json" in answer


# Bodies


def test_who_sends_large_bodies_slowly_holds_up_nobody_else(
    settings: Settings, stack: PromptStack
) -> None:
    other = as_header(stack.keys.create("eve@example.org", "Test"))
    body = json.dumps({"prompt": "large " * SMALL_BYTES}).encode()
    length = f"Content-Length: {len(body)}\r\n".encode()
    with listening(settings, request_read_seconds=10 * PATIENCE) as server, ExitStack() as opened:
        for _ in range(LARGE_READ_AT_ONCE):
            half = (START, server.key, length, b"\r\n", b'{"prompt": ')
            opened.enter_context(server.connected(*half))
        wait_until(lambda: server.large_bodies() >= LARGE_OF_ONE_USER, "the bodies to be read")
        last = b"Connection: close\r\n\r\n"
        assert server.answer(START, other, length, last, body).startswith(b"HTTP/1.1 202 ")


def test_a_client_that_goes_away_in_mid_body_is_no_fault_of_the_server(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(settings) as server:
        for length in (b"Content-Length: 1000\r\n\r\n", b"Content-Length: 100000\r\n\r\n"):
            with server.connected(START, server.key, length, b'{"prompt": '):
                wait_until(lambda: server.requests() == 1, "the request to be taken")
            wait_until(lambda: server.requests() == 0, "the request to be over")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_body_of_too_many_values_is_refused_before_they_are_made(settings: Settings) -> None:
    with (
        PromptStack.open(settings.model_copy(update={"max_body_values": 20_000})) as stack,
        serve(stack) as client,
    ):
        many = "[" + ",".join(["1"] * 20_001) + "]"
        body = f'{{"prompt": "x", "options": {{"a": {many}}}}}'
        response = client.post(
            GENERATIONS, content=body, headers={"Content-Type": "application/json"}
        )
        assert "MAX_BODY_VALUES" in problem(response, 422, "INVALID_INPUT")["detail"]
        # Commas in a text are no values.
        commas = client.post(GENERATIONS, json={"prompt": "1, " * 30_000})
        assert commas.status_code == 202


def test_a_large_body_is_handled_off_the_event_loop(
    stack: PromptStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_threads = set()
    enqueue = stack.jobs.enqueue_embedding

    def notice(*args: object, **kwargs: object) -> object:
        from_threads.add(threading.current_thread().name)
        return enqueue(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(stack.jobs, "enqueue_embedding", notice)
    app = create_app(stack)
    loops = []

    def noticed(text: bytes, what: str) -> object:
        loops.append(asyncio.get_running_loop())
        return load_json(text, what)

    monkeypatch.setattr("promptstack.api.http.route.load_json", noticed)
    key = stack.keys.create("ada@example.org", "Test")
    with TestClient(app, headers={"X-API-Key": key}) as client:
        assert client.portal is not None
        main_loop = client.portal.call(running_loop)
        for text in ("small", "large " * SMALL_BYTES):
            response = client.post("/api/v1/embeddings", json={"text": text})
            assert response.status_code == 202
    assert [loop is main_loop for loop in loops] == [True, False]


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_a_large_body_in_which_values_can_t_be_counted_is_refused(stack: PromptStack) -> None:
    # In UTF-16 this name has a byte that is a quote in UTF-8: what follows would count as text.
    body = json.dumps({"\u2200": 0, "items": [0] * SMALL_BYTES}, ensure_ascii=False)
    key = stack.keys.create("ada@example.org", "Test")
    with TestClient(create_app(stack), headers={"X-API-Key": key}) as client:
        response = client.post(
            "/api/v1/runs/generations",
            content=body.encode("utf-16-le"),
            headers={"Content-Type": "application/json"},
        )
    assert response.status_code == 422
    assert "not in UTF-8" in response.json()["detail"]


def values_and_names(value: object) -> int:
    match value:
        case list():
            return 1 + sum(map(values_and_names, value))
        case dict():
            return 1 + sum(1 + values_and_names(item) for item in value.values())
        case _:
            return 1


texts = st.text() | st.text('",:[{\\')
documents = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
)


@given(document=documents, is_ascii=st.booleans())
@effort(max_examples=100, deadline=None)
def test_values_are_counted_as_they_are(document: object, is_ascii: bool) -> None:
    body = json.dumps(document, ensure_ascii=is_ascii).encode(errors="surrogatepass")
    # An opening bracket counts also where nothing is in it.
    assert (
        0
        <= count_values(body) - values_and_names(document)
        <= body.count(b"[]") + body.count(b"{}")
    )
