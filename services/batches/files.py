"""What batches need of files."""

from collections.abc import Iterator
from typing import Protocol
from uuid import UUID

from promptstack.repositories.unit_of_work import UnitOfWork


class InputFile(Protocol):
    """A file that was uploaded."""

    @property
    def purpose(self) -> str:
        """What it was uploaded for."""

    @property
    def bytes(self) -> int:
        """How long it is."""


class BatchFiles(Protocol):
    """Reads the inputs of batches, and registers their outputs."""

    def get(self, file_id: UUID, owner: UUID | None) -> InputFile:
        """Return a file. Raises `NotFound`."""

    def open(self, file_id: UUID, owner: UUID | None) -> Iterator[bytes]:
        """Yield the bytes of a file, block by block. Raises `NotFound`."""

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
        """Add a file whose content is made from the batch when it is read; its id.

        It doesn't expire before the batch has ended.
        """
