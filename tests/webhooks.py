"""What tests of webhooks share: a receiver, and a worker that sends there."""

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

from promptstack.repositories.webhook_models import WebhookDelivery
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import sql
from tests.processes import PATIENCE, join, wait_until

TAKE, HANG = 204, 0


@dataclass(frozen=True)
class Event:
    """A request that a receiver got."""

    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.raw)
        return found

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """A receiver of events; `answer` is its status for each, or HANG."""

    answer: Callable[[Event], int] = lambda _: TAKE
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    url: str = ""
    got: list[Event] = field(default_factory=list)
    taken: list[Event] = field(default_factory=list)
    """Those that it answered with 2xx."""
    is_over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def receiver(
    answer: Callable[[Event], int] = lambda _: TAKE, certificate: Path | None = None
) -> Iterator[Receiver]:
    """Serve on the loopback address; with a file with a certificate and its key, by TLS."""
    served = Receiver(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            event = Event(self.path, headers, raw)
            served.got.append(event)
            status = served.answer(event)
            if status == HANG:
                served.is_over.wait(PATIENCE)
                self.close_connection = True
                return
            if 200 <= status < 300:
                served.taken.append(event)  # before anybody hears of it
            self.send_response(status)
            for name, value in served.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(served.content)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(served.content)

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.request_queue_size = 256
    served.url = f"http://127.0.0.1:{http.server_port}/hooks"
    if certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
        http.socket = tls.wrap_socket(http.socket, server_side=True)
        served.url = f"https://127.0.0.1:{http.server_port}/hooks"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield served
    finally:
        served.is_over.set()
        http.shutdown()
        join(thread)
        http.server_close()


def send_due(stack: WorkerServices) -> None:
    """Send what is due now, and note what came of it."""
    sender = stack.webhook_sender
    sender.run_once()
    wait_until(lambda: len(sender._tried) == len(sender._under_way), "an answer to each event", 60)
    sender.run_once()


def send_all(stack: WorkerServices, seconds: float = 60.0) -> None:
    """Send until no delivery waits."""
    deadline = time.monotonic() + seconds
    while any(one.due_at is not None for one in deliveries(stack)):
        assert time.monotonic() < deadline, deliveries(stack)
        send_due(stack)
        time.sleep(0.01)


def deliveries(stack: WorkerServices, **filters: Any) -> list[WebhookDelivery]:
    with stack.ledger.transaction() as unit:
        return list(unit.webhook_deliveries.get_many(limit=10_000, **filters))


def make_due(stack: WorkerServices, delivery_id: UUID | None = None) -> None:
    """Let waits be over."""
    which = "" if delivery_id is None else " AND id = :id"
    statement = "UPDATE webhook_deliveries SET due_at = now() WHERE due_at IS NOT NULL"
    values = {} if delivery_id is None else {"id": delivery_id}
    sql(stack, statement + which, **values)
    sql(stack, "UPDATE webhook_endpoints SET rests_until = NULL")
