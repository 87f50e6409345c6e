"""Files and their blocks. What is deleted or has expired is not there for anybody."""

import struct
from collections.abc import Iterable
from contextlib import closing
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    and_,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    tuple_,
    update,
)

from promptstack.repositories.base import BaseRepository, change_rows
from promptstack.repositories.batch_models import Batch
from promptstack.repositories.file_models import File, FileBlock
from promptstack.repositories.pages import Page, PageQuery
from promptstack.repositories.wire_values import copied_row, copy_binary

BLOCKS_AT_ONCE = 100
"""Blocks that one statement deletes."""
FILES_AT_ONCE = 500


class FileRepository(BaseRepository[File]):
    """Files of users."""

    model = File

    def find(self, file_id: UUID, owner: UUID | None) -> File | None:
        """Return a file of this owner; None for the owner is everybody's."""
        whose = [] if owner is None else [File.user_id == owner]
        return self._session.scalars(
            select(File).where(File.id == file_id, IS_THERE, *whose)
        ).first()

    def sha256(self, file_id: UUID) -> bytes:
        """Return the hash of a file's content; nothing of an output's."""
        return self._session.scalar(select(File.sha256).where(File.id == file_id)) or b""

    def with_content(self, user_id: UUID, sha256: bytes) -> File | None:
        """Return the newest file of a user that has this content."""
        query = select(File).where(File.user_id == user_id, File.sha256 == sha256, IS_THERE)
        return self._session.scalars(query.order_by(File.id.desc()).limit(1)).first()

    def page_of(
        self, asked: PageQuery, owner: UUID, *, purpose: str | None, newest_first: bool
    ) -> Page[File]:
        """Return a page of a user's files."""
        of_purpose = [] if purpose is None else [File.purpose == purpose]
        shown = (File.user_id == owner, IS_THERE, ~_is_left_empty(), *of_purpose)
        return self.get_page(asked, *shown, newest_first=newest_first)

    def lock_sums(self, user_id: UUID) -> None:
        """Let no other transaction add files of this user at the same time."""
        name = func.hashtext(f"files of {user_id}")
        self._session.execute(select(func.pg_advisory_xact_lock(name)))

    def sums(self, user_id: UUID) -> tuple[int, int]:
        """Return how many files a user keeps, and how many bytes they have together."""
        query = select(func.count(), func.coalesce(func.sum(File.size), 0)).where(
            File.user_id == user_id, File.batch_id.is_(None), IS_THERE
        )
        count, size = self._session.execute(query).one()
        return count, int(size)

    def add_blocks(self, file_id: UUID, blocks: Iterable[bytes]) -> None:
        """Store the content of a file, block by block as it comes."""
        self._session.flush()
        with closing(self._session.connection().connection.cursor()) as cursor:
            rows = (_laid_out(file_id, number, data) for number, data in enumerate(blocks))
            copy_binary(cursor, "file_blocks (file_id, number, data)", rows)

    def block(self, file_id: UUID, number: int) -> memoryview | None:
        """Return one block; None where it isn't there."""
        query = "SELECT max(data) FROM file_blocks WHERE file_id = %(file)s AND number = %(number)s"
        with closing(self._session.connection().connection.cursor()) as cursor:
            [data] = copied_row(cursor, query, {"file": str(file_id), "number": number})
        return data

    def mark_deleted(self, file_id: UUID, owner: UUID | None) -> bool:
        """Delete a file for everybody; whether it was there."""
        statement = update(File).where(File.id == file_id, File.user_id == owner, IS_THERE)
        return change_rows(self._session, statement.values(deleted_at=func.now())) > 0

    def mark_outputs_deleted(self, batch_id: UUID) -> None:
        """Delete what a batch has written."""
        statement = update(File).where(File.batch_id == batch_id, IS_THERE)
        change_rows(self._session, statement.values(deleted_at=func.now()))

    def prune(self) -> int:
        """Remove some blocks of files that are gone, then the files; how many of both."""
        gone = select(File.id).where(
            or_(File.deleted_at.is_not(None), File.expires_at <= func.now())
        )
        some = gone.limit(FILES_AT_ONCE).subquery()
        key = (FileBlock.file_id, FileBlock.number)
        blocks = select(*key).where(FileBlock.file_id.in_(select(some))).limit(BLOCKS_AT_ONCE)
        removed = change_rows(self._session, delete(FileBlock).where(tuple_(*key).in_(blocks)))
        if removed:
            return removed
        return change_rows(self._session, delete(File).where(File.id.in_(select(some))))


IS_THERE: ColumnElement[bool] = and_(
    File.deleted_at.is_(None), or_(File.expires_at.is_(None), File.expires_at > func.now())
)


def _is_left_empty() -> ColumnElement[bool]:
    """The output of an ended batch that has no line. A retry of the batch may write some."""
    is_empty = case(
        (File.part == "output", Batch.completed == 0), else_=Batch.completed == Batch.total
    )
    return exists().where(Batch.id == File.batch_id, Batch.ended_at.is_not(None), is_empty)


def _laid_out(file_id: UUID, number: int, data: bytes) -> bytes:
    """A row as COPY BINARY reads it."""
    head = struct.pack(">hi16siii", 3, 16, file_id.bytes, 4, number, len(data))
    return head + data
