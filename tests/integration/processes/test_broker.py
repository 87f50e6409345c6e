"""The broker as a worker reads it: whatever anybody has put there, the worker goes on."""

import json
from base64 import b64encode
from typing import Any
from uuid import uuid4

import pytest
from kombu import Consumer, Queue
from kombu.transport import TRANSPORT_ALIASES

from promptstack.tasks import broker
from promptstack.tasks.worker_services import WorkerServices

JUNK = [
    b"not json",
    b"\xff",
    b"[" * 100_000,
    b"123",
    b"null",
    b"{}",
    b'{"properties": {}}',
    b'{"properties": {"delivery_tag": "x", "body_encoding": "base64"}, "body": "!"}',
    b'{"properties": {"delivery_tag": "x", "body_encoding": "rot13"}, "body": "x"}',
]


def test_a_message_that_cannot_be_read_is_dropped(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = f"junk-{uuid4().hex}"
    for scheme in ("redis", "rediss"):
        monkeypatch.setitem(TRANSPORT_ALIASES, scheme, TRANSPORT_ALIASES[scheme])
    broker.use_in_this_process()
    good = {
        "body": b64encode(b"hello").decode(),
        "content-type": "text/plain",
        "content-encoding": "utf-8",
        "headers": {},
        "properties": {
            "delivery_tag": "good",
            "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }
    for message in (*JUNK, json.dumps(good).encode()):
        stack.redis.lpush(queue, message)
    heard: list[Any] = []
    with stack.celery.connection_for_read() as connection:

        def hear(body: Any, message: Any) -> None:
            heard.append(body)
            message.ack()

        with Consumer(connection, [Queue(queue)], callbacks=[hear], accept=["text/plain"]):
            for _ in range(len(JUNK) + 1):
                connection.drain_events(timeout=60)
    assert heard == ["hello"]
