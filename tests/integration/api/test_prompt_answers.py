"""Answers leave at once: no body waits until the client has acknowledged the head."""

import asyncio
import json
import socket
import urllib.request
from typing import Any

import pytest

from promptstack.api.http.protocol import BoundedProtocol
from promptstack.tasks.worker_services import WorkerServices
from tests.http import live_server


def test_connections_send_without_delay(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[bool] = []
    made = BoundedProtocol.connection_made

    def look(self: Any, transport: asyncio.Transport) -> None:
        found = transport.get_extra_info("socket")
        delays.append(not found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(self, transport)

    monkeypatch.setattr(BoundedProtocol, "connection_made", look)
    with (
        live_server(stack) as (_, url),
        urllib.request.urlopen(f"{url}/openapi.json", timeout=60) as answer,
    ):
        json.load(answer)
    assert delays == [False]
