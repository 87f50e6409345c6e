"""Reads and writes objects of S3, or of what speaks its protocol, at places that a setting allows.

No URL of a caller names a server, a file or a credential: the settings do. `s3fs` comes with the
extra `s3`, and is imported when the first object is opened.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from uuid import UUID

from promptstack.config.errors import PromptStackError
from promptstack.services.errors import InvalidInput

if TYPE_CHECKING:
    from s3fs import S3FileSystem

MAX_URL_CHARACTERS = 1_200
"""A key of S3 has at most 1,024 bytes."""
PART_BYTES = 8_388_608
"""Written at once. Of an object that is written, some of these are in memory."""
_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\x00-\x20\x7f*?\[\]#]+")
USER = "{user_id}"


class StorageFailed(PromptStackError):
    """Object storage did not take or give an object, and may later."""

    code = "STORAGE_FAILED"
    transient = True


@dataclass(frozen=True)
class StorageOptions:
    """Where objects are, and as whom they are asked for."""

    places: Sequence[str] = ()
    """What URLs of callers begin with; `{user_id}` stands for the caller's id."""
    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = None


class ObjectStorage:
    """Opens objects by their URLs."""

    def __init__(self, options: StorageOptions) -> None:
        self._options = options
        self._opened: S3FileSystem | None = None

    def check(self, url: str, user_id: UUID | None) -> str:
        """Return the URL if this user may name it. Raises `InvalidInput`."""
        if not self._options.places:
            raise InvalidInput(
                "This server reads and writes no object storage (OBJECT_STORAGE_PLACES)."
            )
        parts = url.split("/")
        is_url = len(url) <= MAX_URL_CHARACTERS and _URL.fullmatch(url) is not None
        if not is_url or not {"", ".", ".."}.isdisjoint(parts[3:]):
            raise InvalidInput("The URL must have the form s3://bucket/folder/name.")
        places = [place.replace(USER, str(user_id)) for place in self._options.places]
        if not any(url.startswith(place.rstrip("/") + "/") for place in places):
            raise InvalidInput(
                "This server may not use that place of object storage; its settings say which it "
                "may (OBJECT_STORAGE_PLACES)."
            )
        return url

    @contextmanager
    def reading(self, url: str) -> Iterator[BinaryIO]:
        """Open an object to read it, by ranges. Raises `InvalidInput`."""
        try:
            file = self._files().open(url, "rb", block_size=PART_BYTES)
        except Exception as error:
            raise InvalidInput(f"{url} can't be read: {_why(error)}.") from error
        with file:
            yield cast("BinaryIO", _Reader(file, url.rpartition("/")[2]))

    @contextmanager
    def writing(self, url: str) -> Iterator[BinaryIO]:
        """Open an object to write it: it is there when the block ends without an error, whole.

        Raises `StorageFailed`.
        """
        try:
            file = self._files().open(url, "wb", block_size=PART_BYTES)
            try:
                yield cast("BinaryIO", file)
            except BaseException:
                # Closed, it would appear as far as it is written.
                file.discard()
                file.closed = True
                raise
            file.close()
        except PromptStackError:
            raise
        except Exception as error:
            raise StorageFailed(f"{url} can't be written: {_why(error)}.") from error

    def _files(self) -> "S3FileSystem":
        if self._opened is None:
            try:
                from s3fs import S3FileSystem  # noqa: PLC0415 - an extra that few need
            except ImportError as error:
                raise StorageFailed(
                    "Object storage needs the extra s3: pip install 'prompt-stack[s3]'."
                ) from error
            options = self._options
            self._opened = S3FileSystem(
                key=options.access_key,
                secret=options.secret_key,
                endpoint_url=options.endpoint,
                client_kwargs={"region_name": options.region} if options.region else {},
                use_listings_cache=False,
                skip_instance_cache=True,
            )
        return self._opened


class _Reader(io.RawIOBase):
    """An object that is read; what goes wrong with it is an `OSError`, as for a file."""

    def __init__(self, file: Any, name: str) -> None:
        self.name = name
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        try:
            block = self._file.read(len(buffer))
        except Exception as error:
            raise OSError(0, _why(error)) from error
        buffer[: len(block)] = block
        return len(block)


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    if isinstance(error, PermissionError):
        return "the server's credentials do not open it"
    if isinstance(error, PromptStackError):
        return str(error).rstrip(".")
    return f"the storage answers with an error ({type(error).__name__})"
