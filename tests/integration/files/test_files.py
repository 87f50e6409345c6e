"""Files: what is stored, how much, for how long, and for whom."""

import hashlib
import threading
from io import BytesIO
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select

from promptstack.repositories.file_models import File, FileBlock
from promptstack.repositories.idempotency import KeyedRequest
from promptstack.repositories.models import new_id
from promptstack.repositories.pages import PageQuery
from promptstack.services.errors import IdempotencyConflict, InvalidInput, NotFound
from promptstack.services.files.service import BLOCK_BYTES, FileBounds, FileService, FileView
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import sql


@pytest.fixture
def ada(stack: WorkerServices) -> UUID:
    return stack.keys.authenticate(stack.keys.create("ada@example.org", "Test")).user_id


@pytest.fixture
def eve(stack: WorkerServices) -> UUID:
    return stack.keys.authenticate(stack.keys.create("eve@example.org", "Test")).user_id


def put(stack: WorkerServices, user_id: UUID, data: bytes = b"{}\n", **more: Any) -> FileView:
    given = {"filename": "in.jsonl", "purpose": "batch", **more}
    return stack.files.create(BytesIO(data), user_id=user_id, **given)


def left(stack: WorkerServices) -> tuple[set[UUID], int]:
    """The ids of files in the table, and how many blocks there are."""
    with stack.ledger.transaction() as unit:
        files = set(unit.session.scalars(select(File.id)))
        return files, unit.session.scalar(select(func.count()).select_from(FileBlock)) or 0


def some_bytes(size: int) -> bytes:
    return hashlib.shake_128(b"x").digest(size)


@pytest.mark.parametrize("size", [1, BLOCK_BYTES, 2 * BLOCK_BYTES + 17])
def test_a_file_is_read_as_it_was_stored(stack: WorkerServices, ada: UUID, size: int) -> None:
    data = some_bytes(size)
    file = put(stack, ada, data)
    assert file.bytes == size
    assert stack.files.get(file.id, ada) == file
    assert b"".join(stack.files.open(file.id, ada)) == data
    content = stack.files.opened(file.id, ada).content
    assert (content.length, content.tag) == (size, hashlib.sha256(data).hexdigest())
    for start, stop in ((0, 1), (size - 1, size), (size // 2, None), (size // 3, size // 2 + 1)):
        assert b"".join(content.blocks(start, stop)) == data[start:stop]


def test_a_file_is_its_users_alone(stack: WorkerServices, ada: UUID, eve: UUID) -> None:
    file = put(stack, ada)
    for ask in (stack.files.get, stack.files.open, stack.files.delete):
        with pytest.raises(NotFound):
            ask(file.id, eve)
    assert stack.files.get_page(eve).rows == []
    with pytest.raises(NotFound):
        stack.files.get(new_id(), ada)


def test_a_list_has_pages_in_both_orders(stack: WorkerServices, ada: UUID) -> None:
    files = [put(stack, ada, purpose=purpose) for purpose in ("batch", "user_data", "batch")]
    assert stack.files.get_page(ada).rows == files[::-1]
    assert stack.files.get_page(ada, newest_first=False).rows == files
    assert stack.files.get_page(ada, purpose="batch").rows == [files[2], files[0]]
    first = stack.files.get_page(ada, PageQuery(2))
    assert (first.rows, first.after) == ([files[2], files[1]], files[1].id)
    # A page may follow a file that was deleted meanwhile.
    stack.files.delete(files[1].id, ada)
    assert stack.files.get_page(ada, PageQuery(2, after=files[1].id)).rows == [files[0]]


def test_a_deleted_file_is_gone_at_once_and_its_blocks_by_cleanup(
    stack: WorkerServices, ada: UUID
) -> None:
    file, other = put(stack, ada, some_bytes(BLOCK_BYTES + 1)), put(stack, ada)
    reading = stack.files.open(file.id, ada)
    assert len(next(reading)) == BLOCK_BYTES
    stack.files.delete(file.id, ada)
    for ask in (stack.files.get, stack.files.open, stack.files.delete):
        with pytest.raises(NotFound):
            ask(file.id, ada)
    stack.cleanup.run_once()
    with pytest.raises(NotFound, match="deleted while it was read"):
        next(reading)
    assert left(stack) == ({other.id}, 1)


def test_a_file_expires(stack: WorkerServices, ada: UUID) -> None:
    month, hour = put(stack, ada), put(stack, ada, expires_after=3_600)
    kept = put(stack, ada, purpose="user_data")
    assert month.expires_at is not None
    assert hour.expires_at is not None
    assert round((month.expires_at - month.created_at).total_seconds()) == 2_592_000
    assert round((hour.expires_at - hour.created_at).total_seconds()) == 3_600
    assert kept.expires_at is None
    stack.cleanup.run_once()
    sql(stack, "UPDATE files SET expires_at = now() WHERE id = :id", id=hour.id)
    with pytest.raises(NotFound):
        stack.files.get(hour.id, ada)
    stack.cleanup.run_once()
    assert left(stack) == ({month.id, kept.id}, 2)
    for seconds in (3_599, 2_592_001):
        with pytest.raises(InvalidInput, match=r"3,600 to 2,592,000 seconds"):
            put(stack, ada, expires_after=seconds)


@pytest.mark.parametrize(
    ("purpose", "why"),
    [("fine-tune", "nothing here reads"), ("batch_output", "no such purpose"), ("", "no such")],
)
def test_a_file_is_for_something(stack: WorkerServices, ada: UUID, purpose: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as caught:
        put(stack, ada, purpose=purpose)
    assert caught.value.pointer == "/purpose"


def test_an_empty_file_is_refused(stack: WorkerServices, ada: UUID) -> None:
    with pytest.raises(InvalidInput, match="empty"):
        put(stack, ada, b"")


@pytest.mark.parametrize(
    ("given", "kept"),
    [("", "file"), ("a\n\x1b.jsonl", "a.jsonl"), ("x" * 600 + ".jsonl", "x" * 494 + ".jsonl")],
)
def test_a_name_can_be_shown(stack: WorkerServices, ada: UUID, given: str, kept: str) -> None:
    assert put(stack, ada, filename=given).filename == kept


def test_what_breaks_off_leaves_nothing(stack: WorkerServices, ada: UUID) -> None:
    class Breaking(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > BLOCK_BYTES:
                raise OSError("The disk is gone.")
            return super().read(size)

    with pytest.raises(OSError, match="disk"):
        stack.files.create(
            Breaking(some_bytes(3 * BLOCK_BYTES)), filename="x", purpose="batch", user_id=ada
        )
    assert left(stack) == (set(), 0)


def test_a_request_that_is_sent_again_makes_one_file(stack: WorkerServices, ada: UUID) -> None:
    request = KeyedRequest(ada, "key", "POST /files", "hash")
    first = put(stack, ada, keyed=request)
    assert put(stack, ada, keyed=request) == first
    with pytest.raises(IdempotencyConflict):
        put(stack, ada, keyed=KeyedRequest(ada, "key", "POST /files", "other"))
    assert stack.files.get_page(ada).rows == [first]


@pytest.fixture
def small(stack: WorkerServices) -> FileService:
    return FileService(stack.ledger, FileBounds(files=3, bytes=100, batch_seconds=0))


def test_a_user_keeps_so_much(small: FileService, ada: UUID, eve: UUID) -> None:
    def keep(size: int, user_id: UUID = ada) -> FileView:
        return small.create(BytesIO(b"x" * size), filename="x", purpose="batch", user_id=user_id)

    first = keep(60)
    assert first.expires_at is None
    with pytest.raises(InvalidInput, match=r"have 60 bytes, and this one has 41.*at most 100"):
        keep(41)
    keep(40)
    small.delete(first.id, ada)
    keep(1), keep(1)
    with pytest.raises(InvalidInput, match=r"You keep 3 files.*FILES_OF_ONE_USER"):
        keep(1)
    keep(100, eve)


def test_uploads_at_once_share_the_room(small: FileService, ada: UUID) -> None:
    refused = []

    def keep() -> None:
        try:
            small.create(BytesIO(b"x" * 60), filename="x", purpose="batch", user_id=ada)
        except InvalidInput as error:
            refused.append(error)

    threads = [threading.Thread(target=keep) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(refused) == 3
    assert len(small.get_page(ada).rows) == 1


def test_outputs_of_a_batch_are_files_until_it_is_deleted(
    stack: WorkerServices, ada: UUID, eve: UUID
) -> None:
    batch_id = new_id()
    with stack.ledger.transaction() as unit:
        output = stack.files.register_output(
            unit, batch_id=batch_id, part="output", filename="o", user_id=ada, api_key_id=None
        )
    file = stack.files.get(output, ada)
    assert (file.purpose, file.batch_id, file.part) == ("batch_output", batch_id, "output")
    with pytest.raises(NotFound):
        stack.files.get(output, eve)
    with stack.ledger.transaction() as unit:
        unit.files.mark_outputs_deleted(batch_id)
    with pytest.raises(NotFound):
        stack.files.get(output, ada)
