"""Celery's messages as bytes: its protocol 2, as kombu's Redis transport puts it on a list.

Celery takes far longer to make the same. `tests/integration/jobs/test_celery_messages.py`
compares each field with what Celery's own `send_task` writes.
"""

import json
import os
import socket
import time
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from typing import Any

import orjson
from uuid_utils import uuid4

from promptstack.config.names import Queue, TaskName
from promptstack.repositories.models import JobKind
from promptstack.services.jobs.publishing import JobMessage
from promptstack.services.jobs.views import asked

TASKS = {
    JobKind.GENERATION: TaskName.GENERATE_TEXT,
    JobKind.EMBEDDING: TaskName.GENERATE_EMBEDDINGS,
    JobKind.SHARD: TaskName.RUN_SHARD,
    JobKind.FINALIZATION: TaskName.FINALIZE_RUN,
    JobKind.NOTIFICATION: TaskName.SEND_NOTIFICATION,
    JobKind.OPERATION: TaskName.RUN_OPERATION,
    JobKind.BATCH: TaskName.TAKE_BATCH_IN,
    JobKind.VECTORS: TaskName.GENERATE_EMBEDDINGS,
}
EVENTS_EXCHANGE = "celeryev"
GATHERED = "task.multi"
"""The topic of several events in one message."""
PERSISTENT, TRANSIENT = 2, 1
"""Modes of delivery."""
_ID, _TAG, _BODY, _SHOWN = b"<id>", b"<tag>", b"<body>", b"<shown>"
"""Places in a template."""
_NO_CANVAS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
_REPLY_TO = str(uuid4())
"""Celery names here who reads results of the rpc backend. Nobody does."""


def arguments(message: JobMessage) -> list[str | None]:
    """The arguments of a job's task."""
    return [str(message.job_id), message.sent_at.isoformat() if message.sent_at else None]


def shown(message: JobMessage) -> str:
    """What monitors show of a message: ids and names, never any content."""
    return f"job {message.job_id} with {asked(message.provider, message.model)}"


def task_message(message: JobMessage) -> bytes:
    """A job's message, as it lies in its queue."""
    job_id, shown_ = str(message.job_id), orjson.dumps(shown(message))[1:-1]
    body = b64encode(orjson.dumps([arguments(message), {}, _NO_CANVAS]))
    template = _template(message.kind, message.queue, os.getpid())
    # What may hold any text comes last.
    filled = template.replace(_ID, job_id.encode()).replace(_TAG, str(uuid4()).encode())
    return filled.replace(_BODY, body).replace(_SHOWN, shown_)


@cache
def _template(kind: JobKind, queue: Queue, pid: int) -> bytes:
    """A message with places for what differs from one to the next."""
    job_id, seen = _ID.decode(), _SHOWN.decode()
    headers: dict[str, Any] = {
        "lang": "py",
        "task": TASKS[kind],
        "id": job_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": job_id,
        "parent_id": None,
        "argsrepr": seen,
        "kwargsrepr": "",
        "origin": _origin(pid),
        "ignore_result": None,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
    properties = {
        "correlation_id": job_id,
        "reply_to": _REPLY_TO,
        "argsrepr": seen,
        "kwargsrepr": "",
        **_delivery(PERSISTENT, "", queue, _TAG.decode()),
    }
    return _packed(_BODY.decode(), headers, properties)


def sent_event(messages: Sequence[JobMessage]) -> tuple[str, bytes]:
    """The topic, below that of all events, and the bytes that tell monitors of new messages."""
    origin = _origin(os.getpid())
    events = [_task_sent(message, origin) for message in messages]
    if len(events) > 1:
        return GATHERED, gathered_events(events, origin)
    return "task.sent", _event(events[0], origin, "task.sent")


def gathered_events(events: Sequence[dict[str, Any]], origin: str) -> bytes:
    """Events of tasks, as Celery's dispatcher sends those that it has gathered."""
    return _event(events, origin, GATHERED)


def _event(body: Any, origin: str, topic: str) -> bytes:
    try:
        encoded = orjson.dumps(body)
    except TypeError:  # somebody else's message has a text that is none
        encoded = json.dumps(body, default=str).encode()
    written = b64encode(encoded).decode()
    properties = _delivery(TRANSIENT, EVENTS_EXCHANGE, topic, str(uuid4()))
    return _packed(written, {"hostname": origin}, properties)


def _task_sent(message: JobMessage, origin: str) -> dict[str, Any]:
    job_id = str(message.job_id)
    return {
        "hostname": origin,
        "utcoffset": (time.altzone if time.localtime().tm_isdst else time.timezone) / 3600.0,
        "pid": os.getpid(),
        "clock": 1,  # monitors set it for clients themselves
        "uuid": job_id,
        "root_id": job_id,
        "parent_id": None,
        "name": TASKS[message.kind],
        "args": shown(message),
        "kwargs": "",
        "retries": 0,
        "eta": None,
        "expires": None,
        "queue": message.queue,
        "exchange": "",
        "routing_key": message.queue,
        "timestamp": time.time(),
        "type": "task-sent",
    }


def _delivery(mode: int, exchange: str, routing_key: str, tag: str) -> dict[str, Any]:
    return {
        "delivery_mode": mode,
        "delivery_info": {"exchange": exchange, "routing_key": routing_key},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": tag,
    }


def _packed(body: str, headers: dict[str, Any], properties: dict[str, Any]) -> bytes:
    return orjson.dumps(
        {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": headers,
            "properties": properties,
        }
    )


@cache
def _origin(pid: int) -> str:
    """Who sends, as Celery names a process that is no worker."""
    return f"gen{pid}@{socket.gethostname()}"
