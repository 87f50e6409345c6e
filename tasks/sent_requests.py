"""Reads messages of another service's Celery that hold a request, in place of a job's id."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from promptstack.config.names import TaskName
from promptstack.repositories.jobs.celery_messages import SentJob
from promptstack.repositories.models import JobKind
from promptstack.services.errors import InvalidInput
from promptstack.services.jobs.new_job import QUEUES

SHOWN = "a request"
"""What monitors and the log show of its arguments."""
KINDS = {
    TaskName.GENERATE_TEXT: JobKind.GENERATION,
    TaskName.GENERATE_EMBEDDINGS: JobKind.EMBEDDING,
}
"""The tasks that take a request."""
_POSITIONAL = {JobKind.GENERATION: ("prompt",), JobKind.EMBEDDING: ("text", "source")}
_OF_A_JOB = frozenset({"job", "sent_at"})
_CANVAS = ("callbacks", "errbacks", "chain", "chord")
_HEADERS = (
    "root_id", "parent_id", "group", "group_index", "ignore_result", "stamped_headers", "stamps",
    "replaced_task_nesting", "reply_to",
)  # fmt: skip
"""What Celery needs of a message when its task has ended."""


def holds_request(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a message holds a request, and not the id of a job."""
    if kwargs:
        return not kwargs.keys() <= _OF_A_JOB
    return not (args and _is_id(args[0]))


def sent_job(request: Mapping[str, Any]) -> SentJob:
    """The job that a message asks for. Raises `InvalidInput`, which quotes nothing of it."""
    if not _is_id(request["id"]):
        raise InvalidInput(
            "The id of a task with a request must be a UUID, as Celery makes it: the job gets it."
        )
    kind = KINDS[request["task"]]
    body = _named(kind, request["args"], request["kwargs"])
    bulk = body.pop("bulk", False)
    if not isinstance(bulk, bool):
        raise InvalidInput("bulk must be true or false.")
    embed = request["embed"]
    embed = embed if isinstance(embed, Mapping) else {}
    told = {name: embed.get(name) for name in _CANVAS}
    told |= {name: request.get(name) for name in _HEADERS}
    return SentJob(
        id=UUID(request["id"]),
        kind=kind,
        queue=QUEUES[kind, bulk],
        request=body,
        options={name: value for name, value in told.items() if value is not None},
        not_before=_time(request.get("eta")),
    )


def _named(kind: JobKind, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The request by names, whatever was given by its place."""
    names = _POSITIONAL[kind]
    if len(args) > len(names):
        takes = " and ".join(names)
        raise InvalidInput(f"{len(args)} arguments without a name; there can be {takes}.")
    placed = dict(zip(names, args, strict=False))
    if twice := sorted(placed.keys() & kwargs.keys()):
        raise InvalidInput(f"Given by its place and by its name: {', '.join(twice)}.")
    return {**placed, **kwargs}


def _is_id(given: object) -> bool:
    try:
        return isinstance(given, str) and bool(UUID(given))
    except ValueError:
        return False


def _time(eta: object) -> datetime | None:
    return datetime.fromisoformat(eta) if isinstance(eta, str) else None
