"""Files as their users keep them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from io import SEEK_END
from typing import BinaryIO, Self
from uuid import UUID

from promptstack.config.control_characters import CONTROLS
from promptstack.repositories.file_models import File
from promptstack.repositories.idempotency import KeyedRequest
from promptstack.repositories.models import new_id
from promptstack.repositories.pages import FIRST_PAGE, Page, PageQuery
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import InvalidInput, NotFound
from promptstack.services.files.contents import Content, OutputContents, StoredContent
from promptstack.services.idempotency.claims import claim
from promptstack.services.text import make_storable

BLOCK_BYTES = 1_048_576
BATCH, BATCH_OUTPUT = "batch", "batch_output"
KEPT_PURPOSES = (BATCH, "user_data", "assistants")
"""What files may be uploaded for."""
OTHER_PURPOSES = ("fine-tune", "vision", "evals")
"""Those that OpenAI has besides."""
LEAST_SECONDS, MOST_SECONDS = 3_600, 2_592_000
"""For how long a caller may ask to keep a file: an hour to 30 days, as at OpenAI."""
MAX_FILENAME = 500


@dataclass(frozen=True)
class FileBounds:
    """How much a user may keep."""

    files: int
    bytes: int
    batch_seconds: float
    """How long the inputs of batches are kept whose sender says nothing; 0 is for ever."""


@dataclass(frozen=True)
class FileView:
    """A file, without its content."""

    id: UUID
    filename: str
    purpose: str
    bytes: int
    created_at: datetime
    expires_at: datetime | None
    batch_id: UUID | None = None
    """The batch whose output it is."""
    part: str | None = None

    @classmethod
    def of(cls, file: File) -> Self:
        """The view of a row."""
        return cls(
            id=file.id,
            filename=file.filename,
            purpose=file.purpose,
            bytes=file.size,
            created_at=file.created_at,
            expires_at=file.expires_at,
            batch_id=file.batch_id,
            part=file.part,
        )


@dataclass(frozen=True)
class OpenedFile:
    """A file and its content."""

    file: FileView
    content: Content
    last_line: int | None = None
    """Of a batch's output: how many lines there are now."""


class FileService:
    """Keeps files."""

    def __init__(
        self, ledger: Ledger, bounds: FileBounds, outputs: OutputContents | None = None
    ) -> None:
        self._ledger = ledger
        self._bounds = bounds
        self._outputs = outputs

    def create(
        self,
        content: BinaryIO,
        *,
        filename: str,
        purpose: str,
        user_id: UUID,
        api_key_id: UUID | None = None,
        expires_after: int | None = None,
        keyed: KeyedRequest | None = None,
        once: bool = False,
    ) -> FileView:
        """Store a file, whose content is read from its beginning.

        It is there whole or not at all. A request that was sent before is answered with the file
        that it has made; with `once`, any request for the same content and purpose is. Raises
        `InvalidInput` and `IdempotencyConflict`.
        """
        _check_purpose(purpose)
        if expires_after is not None and not LEAST_SECONDS <= expires_after <= MOST_SECONDS:
            raise InvalidInput(
                f"A file expires {LEAST_SECONDS:,} to {MOST_SECONDS:,} seconds after it was made.",
                pointer="/expires_after/seconds",
            )
        size = content.seek(0, SEEK_END)
        if not size:
            raise InvalidInput("The file is empty.", pointer="/file")
        file_id, hashed = new_id(), hashlib.sha256()
        with self._ledger.transaction() as unit:
            if (made := claim(unit, keyed, file_id)) is not None:
                return self._view(unit, made, user_id)
            # Else several uploads at once would each find room.
            unit.files.lock_sums(user_id)
            if once and (same := _same(unit, content, purpose, user_id)) is not None:
                return FileView.of(same)
            self._check_room(unit, user_id, size)
            file = unit.files.create(
                id=file_id,
                user_id=user_id,
                api_key_id=api_key_id,
                filename=_stored_name(filename),
                purpose=purpose,
                size=size,
                expires_at=self._end(unit, purpose, expires_after),
            )
            unit.files.add_blocks(file_id, _hashed(content, hashed))
            unit.files.update(file, sha256=hashed.digest())
            return self._view(unit, file_id, user_id)

    def get(self, file_id: UUID, owner: UUID | None) -> FileView:
        """Return a file. Raises `NotFound`."""
        with self._ledger.transaction() as unit:
            return self._view(unit, file_id, owner)

    def get_page(
        self,
        owner: UUID,
        asked: PageQuery = FIRST_PAGE,
        *,
        purpose: str | None = None,
        newest_first: bool = True,
    ) -> Page[FileView]:
        """Return a page of a user's files."""
        with self._ledger.transaction() as unit:
            page = unit.files.page_of(asked, owner, purpose=purpose, newest_first=newest_first)
            return page.of(FileView.of)

    def delete(self, file_id: UUID, owner: UUID) -> None:
        """Delete a file. Raises `NotFound`."""
        with self._ledger.transaction() as unit:
            if not unit.files.mark_deleted(file_id, owner):
                raise _not_there()

    def open(self, file_id: UUID, owner: UUID | None) -> Iterator[bytes]:
        """Yield the bytes of a file, block by block. Raises `NotFound`."""
        return self.opened(file_id, owner).content.blocks()

    def opened(self, file_id: UUID, owner: UUID | None, *, after_lines: int = 0) -> OpenedFile:
        """Open a file; the output of a batch behind so many lines. Raises `NotFound`."""
        with self._ledger.transaction() as unit:
            file = self._view(unit, file_id, owner)
            sha256 = unit.files.sha256(file_id)
        if file.batch_id is None:
            read = partial(self._block, file_id)
            content = StoredContent(read, file.bytes, BLOCK_BYTES, sha256.hex())
            return OpenedFile(file, content)
        if self._outputs is None:
            raise _not_there()
        part = self._outputs.open(file.batch_id, file.part or "", after_lines=after_lines)
        return OpenedFile(file, part, part.last_line)

    def _block(self, file_id: UUID, number: int) -> bytes:
        with self._ledger.transaction() as unit:
            data = unit.files.block(file_id, number)
        if data is None:
            raise NotFound("The file was deleted while it was read.")
        return bytes(data)

    def register_output(
        self,
        unit: UnitOfWork,
        *,
        batch_id: UUID,
        part: str,
        filename: str,
        user_id: UUID | None,
        api_key_id: UUID | None,
    ) -> UUID:
        """Add a file whose content is made from a batch when it is read; its id.

        It doesn't expire before the batch has ended.
        """
        file = unit.files.create(
            user_id=user_id,
            api_key_id=api_key_id,
            filename=filename,
            purpose=BATCH_OUTPUT,
            batch_id=batch_id,
            part=part,
        )
        return file.id

    def _view(self, unit: UnitOfWork, file_id: UUID, owner: UUID | None) -> FileView:
        file = unit.files.find(file_id, owner)
        if file is None:
            raise _not_there()
        return FileView.of(file)

    def _end(self, unit: UnitOfWork, purpose: str, asked: int | None) -> datetime | None:
        if asked is None and purpose == BATCH:
            return self._after(unit, self._bounds.batch_seconds or None)
        return self._after(unit, asked)

    @staticmethod
    def _after(unit: UnitOfWork, seconds: float | None) -> datetime | None:
        return None if seconds is None else unit.now() + timedelta(seconds=seconds)

    def _check_room(self, unit: UnitOfWork, user_id: UUID, size: int) -> None:
        """Raise `InvalidInput` where a user keeps as much as they may."""
        files, kept = unit.files.sums(user_id)
        if files >= self._bounds.files:
            raise InvalidInput(
                f"You keep {files:,} files, and more are not allowed (FILES_OF_ONE_USER). Delete "
                "some, or let them expire by `expires_after`."
            )
        if kept + size > self._bounds.bytes:
            raise InvalidInput(
                f"Your files have {kept:,} bytes, and this one has {size:,}; at most "
                f"{self._bounds.bytes:,} are kept (FILE_BYTES_OF_ONE_USER). Delete some, or let "
                "them expire by `expires_after`."
            )


def _check_purpose(purpose: str) -> None:
    if purpose in KEPT_PURPOSES:
        return
    known = ", ".join(KEPT_PURPOSES)
    why = (
        "nothing here reads such files" if purpose in OTHER_PURPOSES else "there is no such purpose"
    )
    raise InvalidInput(
        f"The purpose {purpose[:100]!r} is not taken: {why}. Send {known}.", pointer="/purpose"
    )


def _same(unit: UnitOfWork, content: BinaryIO, purpose: str, user_id: UUID) -> File | None:
    """A file of the user that has this content and purpose."""
    content.seek(0)
    hashed = hashlib.file_digest(content, "sha256")  # type: ignore[arg-type]
    file = unit.files.with_content(user_id, hashed.digest())
    return None if file is None or file.purpose != purpose else file


def _stored_name(filename: str) -> str:
    """A name as it can be shown; of a long one its end, which tells the kind of file."""
    return CONTROLS.sub("", make_storable(filename))[-MAX_FILENAME:] or "file"


def _hashed(content: BinaryIO, hashed: "hashlib._Hash") -> Iterator[bytes]:
    content.seek(0)
    while block := content.read(BLOCK_BYTES):
        hashed.update(block)
        yield block


def _not_there() -> NotFound:
    return NotFound("There is no file with this id.")
