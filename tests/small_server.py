"""A server of a few lines that speaks OpenAI's wire as far as it is told to."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.processes import join

Answer = tuple[int, Any]
"""A status and what is sent as JSON, or as it is where it's text."""


STREAM_STARTS = ("data:", "event:", ":", "\ufeff")
"""A text that begins so is sent as a stream of events."""


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    method: str
    path: str
    """With its query."""
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class SmallServer:
    """What it answers, and what it was asked."""

    answer: Callable[[Asked], Answer]
    url: str = ""
    asked: list[Asked] = field(default_factory=list)

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """Of the requests to a path that were no question for what is there."""
        return [one.body for one in self.asked if one.path.endswith(path) and one.body]


@contextmanager
def small_server(answer: Callable[[Asked], Answer]) -> Iterator[SmallServer]:
    """Serve on the loopback address."""
    server = SmallServer(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, json.loads(raw or b"{}"))
            server.asked.append(asked)
            status, said = server.answer(asked)
            content = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            is_stream = isinstance(said, str) and said.startswith(STREAM_STARTS)
            kind = "text/event-stream" if is_stream else "application/json"
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _serve  # noqa: N815 - the names that http.server calls

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        join(thread)
        http.server_close()


def vectors(asked: Asked, dimensions: int = 3) -> Answer:
    """One vector a text."""
    rows = [
        {"index": index, "embedding": [1.0] * dimensions}
        for index, _ in enumerate(asked.body["input"])
    ]
    return 200, {"data": rows, "model": asked.body["model"], "usage": {"prompt_tokens": len(rows)}}


def chat(asked: Asked, text: str = "Done.") -> Answer:
    """A text."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    return 200, {"choices": [choice], "model": asked.body["model"], "usage": usage}
