"""Pages of lists: what a request asks for, and what leads to the pages before and after."""

from typing import Any, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from promptstack.repositories.pages import COUNT_CAP, Page, PageQuery
from promptstack.services.errors import InvalidInput

Key = TypeVar("Key", UUID, int)


class PageParameters(BaseModel, Generic[Key]):
    """Which page of a list to show."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(50, ge=1, le=100, description="The most on a page.")
    after: Key | None = Field(None, description="`after` of another page: the one that follows it.")
    before: Key | None = Field(
        None, description="`before` of another page: the one that comes before it."
    )
    count: bool = Field(False, description=f"Also count all, up to {COUNT_CAP:,}.")

    @property
    def page(self) -> PageQuery:
        """The page. Raises `InvalidInput`."""
        if self.after is not None and self.before is not None:
            raise InvalidInput("A page is after another one or before it; send one of the two.")
        return PageQuery(self.limit, self.after, self.before, self.count)


class PageEnds(BaseModel, Generic[Key]):
    """What leads to other pages."""

    after: Key | None = Field(
        description="Send it as `after` to get the next page; null on the last one."
    )
    before: Key | None = Field(
        description="Send it as `before` to get the page before; null on the first one."
    )
    count: int | None = Field(description="How many there are in all, where it was asked for.")
    count_is_capped: bool = Field(description=f"Whether there are more than {COUNT_CAP:,}.")


def ends_of(page: Page[Any]) -> dict[str, Any]:
    """The fields of `PageEnds`."""
    return {name: getattr(page, name) for name in PageEnds.model_fields}
