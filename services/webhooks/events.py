"""Events: their names, which are OpenAI's where it has one, and their bodies."""

import json
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from promptstack.services.openai.responses import RESPONSE_PREFIX

ALL = "*"
"""Stands for every event among those that an endpoint asks for."""


class EventType(StrEnum):
    """What has happened. The trigger that notes the ends of jobs and runs writes these names."""

    RESPONSE_COMPLETED = "response.completed"
    RESPONSE_FAILED = "response.failed"
    RESPONSE_CANCELLED = "response.cancelled"
    RESPONSE_INCOMPLETE = "response.incomplete"
    """A generation's deadline passed before it was done. Of a response of OpenAI's API, that its
    answer was cut off: a deadline is `response.failed` there."""
    EMBEDDING_COMPLETED = "embedding.completed"
    EMBEDDING_FAILED = "embedding.failed"
    """Also where the deadline passed."""
    EMBEDDING_CANCELLED = "embedding.cancelled"
    RUN_COMPLETED = "run.completed"
    RUN_FAILED = "run.failed"
    RUN_CANCELLED = "run.cancelled"
    RUN_EXPIRED = "run.expired"
    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_CANCELLED = "batch.cancelled"
    BATCH_EXPIRED = "batch.expired"


PREFIXES = {"batch": "batch_"}
"""Of ids of what an event is about. Else it is a UUID."""
TEST = "webhook.test"
"""The event of a test delivery, which nobody asks for beforehand."""


def event_name(event_id: UUID) -> str:
    """The id of an event as receivers see it."""
    return f"evt_{event_id.hex}"


def object_name(type_: str, object_id: UUID, *, is_response: bool = False) -> str:
    """The id of what an event is about, as the door that shows it writes it."""
    prefix = RESPONSE_PREFIX if is_response else PREFIXES.get(type_.partition(".")[0])
    return str(object_id) if prefix is None else f"{prefix}{object_id.hex}"


def event_body(
    event_id: UUID, type_: str, object_id: UUID, at: datetime, *, is_response: bool = False
) -> str:
    """What is sent: which object it is about, and nothing of what is in it."""
    return json.dumps(
        {
            "id": event_name(event_id),
            "object": "event",
            "created_at": int(at.timestamp()),
            "type": type_,
            "data": {"id": object_name(type_, object_id, is_response=is_response)},
        },
        separators=(",", ":"),
    )
