"""OpenAI's files, in memory: uploads, and what batches made."""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from promptstack.simulator.receiving import Upload
from promptstack.simulator.wire import Answer, Content, Endpoint, ProviderRequest, Refusal

FILES = "/v1/files"
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
MOST_FILES = 10_000
MOST_BYTES = 512 * 1024 * 1024
"""Of all uploads together: what batches made takes no room, for it is made when it is read."""
LONGEST_PAGE = 10_000
BLOCK = 64 * 1024


@dataclass(frozen=True)
class StoredFile:
    """A file: its bytes, or how they are made."""

    id: str
    filename: str
    purpose: str
    created_at: float
    size: int
    read: Callable[[], Iterable[bytes]]
    expires_at: float | None = None
    content: bytes = b""
    """Of an upload."""

    def describe(self) -> Mapping[str, Any]:
        """Make OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size,
            "created_at": int(self.created_at),
            "expires_at": None if self.expires_at is None else int(self.expires_at),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class Files:
    """The files of one simulator."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._numbers = itertools.count(1)
        self._files: dict[str, StoredFile] = {}

    def endpoints(self) -> Mapping[tuple[str, str], Endpoint]:
        """What is served, by method and path."""
        return {
            ("POST", FILES): self.upload,
            ("GET", FILES): self.list,
            ("GET", f"{FILES}/{{id}}"): lambda ask: Answer(self.get(ask.path["id"]).describe()),
            ("GET", f"{FILES}/{{id}}/content"): self.content,
            ("DELETE", f"{FILES}/{{id}}"): self.delete,
        }

    def upload(self, ask: ProviderRequest) -> Answer:
        """Keep an upload."""
        given, purpose = ask.body.get("file"), ask.body.get("purpose")
        if not isinstance(given, Upload):
            raise Refusal(400, "'file' is a required property.")
        if purpose not in PURPOSES:
            raise Refusal(400, f"'{purpose}' is not one of {list(PURPOSES)} - 'purpose'.")
        lifetime = ask.body.get("expires_after[seconds]")
        now = self._clock()
        stored = self.add(
            given.filename,
            purpose,
            size=len(given.content),
            read=lambda: blocks(given.content),
            content=given.content,
            expires_at=None if lifetime is None else now + int(lifetime),
        )
        return Answer(stored.describe())

    def add(
        self,
        filename: str,
        purpose: str,
        *,
        size: int,
        read: Callable[[], Iterable[bytes]],
        content: bytes = b"",
        expires_at: float | None = None,
    ) -> StoredFile:
        """Keep a file. Raises `Refusal` where there is no more room."""
        self._forget_expired()
        kept = sum(len(file.content) for file in self._files.values())
        if len(self._files) >= MOST_FILES or kept + len(content) > MOST_BYTES:
            message = f"The simulator keeps {MOST_FILES} files and {MOST_BYTES} bytes: delete some."
            raise Refusal(413, message, "storage_limit_reached")
        stored = StoredFile(
            id=f"file-{next(self._numbers):024d}",
            filename=filename,
            purpose=purpose,
            created_at=self._clock(),
            size=size,
            read=read,
            expires_at=expires_at,
            content=content,
        )
        self._files[stored.id] = stored
        return stored

    def get(self, name: str) -> StoredFile:
        """Find a file by its id. Raises `Refusal`."""
        self._forget_expired()
        if name not in self._files:
            raise Refusal(404, f"No such File object: {name}", "not_found")
        return self._files[name]

    def list(self, ask: ProviderRequest) -> Answer:
        """List files, newest first if nothing else is asked for."""
        self._forget_expired()
        purpose = ask.query.get("purpose")
        found = [file for file in self._files.values() if purpose in {None, file.purpose}]
        if ask.query.get("order", "desc") == "desc":
            found.reverse()
        return Answer(page([file.describe() for file in found], ask.query, LONGEST_PAGE))

    def content(self, ask: ProviderRequest) -> Answer:
        """Read a file."""
        file = self.get(ask.path["id"])
        return Answer({}, content=Content(file.read(), file.size, file.filename))

    def delete(self, ask: ProviderRequest) -> Answer:
        """Forget a file. A batch that reads it goes on."""
        deleted = self.get(ask.path["id"])
        del self._files[deleted.id]
        return Answer({"id": deleted.id, "object": "file", "deleted": True})

    def reset(self) -> None:
        """Forget all files; ids go on."""
        self._files.clear()

    def _forget_expired(self) -> None:
        now = self._clock()
        self._files = {
            name: file
            for name, file in self._files.items()
            if file.expires_at is None or file.expires_at > now
        }


def blocks(content: bytes) -> Iterable[bytes]:
    """Cut a file up for sending."""
    return (content[start : start + BLOCK] for start in range(0, len(content), BLOCK))


def page(
    found: list[Mapping[str, Any]], query: Mapping[str, str], default: int, most: int = LONGEST_PAGE
) -> Mapping[str, Any]:
    """Cut OpenAI's page out of a list. Raises `Refusal`."""
    raw = query.get("limit", str(default))
    limit = int(raw) if raw.isdecimal() else 0
    if not 1 <= limit <= most:
        raise Refusal(400, f"Invalid 'limit': give 1 to {most}.", "invalid_value")
    after = query.get("after")
    if after is not None:
        ids = [one["id"] for one in found]
        if after not in ids:
            raise Refusal(400, f"Invalid 'after': no object has the id '{after}'.", "invalid_value")
        found = found[ids.index(after) + 1 :]
    data = found[:limit]
    first, last = (data[0]["id"], data[-1]["id"]) if data else ("", "")
    edges = {"first_id": first, "last_id": last}
    return {"object": "list", "data": data, **edges, "has_more": len(found) > limit}
