"""Answers that come piece by piece and go on where a lost connection broke off."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Generic, Protocol, Self, TypeVar

import httpx2

from promptstack_client.calls import Call
from promptstack_client.errors import ConnectionFailed

T_co = TypeVar("T_co", covariant=True)


class Pieces(Protocol):
    """Something of an answer, one after the other, for both kinds of clients."""

    def __iter__(self) -> Iterator[Any]: ...

    def __aiter__(self) -> AsyncIterator[Any]: ...


class Feed(ABC, Generic[T_co]):
    """What is read of such an answer; both kinds of clients drive it."""

    first: Call[Any] | None = None
    """A call before all others, whose answer says what to read."""
    ended = False
    """Whether all has been read."""
    result: Any
    """What is left then, of a feed that is read for that."""

    def begin(self, answer: Any) -> None:
        """Take the answer of the first call."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of what was needed for reading."""

    @abstractmethod
    def call(self) -> Call[Any]:
        """What to ask for: all, or what comes after the last that was taken."""

    @abstractmethod
    def pieces(self, response: httpx2.Response) -> Pieces:
        """The answer in pieces."""

    def is_progress(self, piece: Any) -> bool:
        """Whether a piece shows that the connection was worth it."""
        return True

    @abstractmethod
    def take(self, piece: Any) -> Iterable[T_co]:
        """What a piece holds for the caller."""

    def close(self) -> None:
        """Take the end of an answer. Raises `ConnectionFailed` where more is to come."""
        if not self.ended:
            raise ConnectionFailed("The answer ended before its last part.", was_sent=True)


class Bytes:
    """An answer as bytes."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        return self._response.iter_bytes()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._response.aiter_bytes()
