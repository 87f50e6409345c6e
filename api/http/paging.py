"""Pages of lists: where the next one begins."""

from collections.abc import Sequence
from typing import Protocol, TypeVar
from uuid import UUID


class HasId(Protocol):
    """What a list is made of."""

    @property
    def id(self) -> UUID: ...


Item = TypeVar("Item", bound=HasId)


def cut(found: Sequence[Item], limit: int) -> tuple[list[Item], UUID | None]:
    """The page, and `after` for the next one; None if it is the last.

    One more is asked for than the page holds: it tells whether there is a next page.
    """
    page = list(found[:limit])
    return page, page[-1].id if len(found) > len(page) else None
