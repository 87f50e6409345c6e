"""Lists: a page at a time, or all of them one after the other."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

from promptstack_client.calls import Call
from promptstack_client.models.base import Model
from promptstack_client.sending import AsyncSender, Sender

T = TypeVar("T")


class Page(Model, Generic[T]):
    """One page of a list."""

    items: list[T]
    after: Any = None
    """What leads to the next page; None on the last one."""
    before: Any = None
    """What leads to the page before; None on the first one."""
    count: int | None = None
    """How many there are in all, where it was asked for."""
    count_is_capped: bool = False
    """There are more than `count`: the server stopped counting."""

    @classmethod
    def of(cls, answer: dict[str, Any], name: str, items: TypeAdapter[list[T]]) -> "Page[T]":
        """A page, from an answer that has its items in the field `name`."""
        ends = {key: value for key, value in answer.items() if key != name}
        return cls.model_construct(**{"items": items.validate_python(answer[name]), **ends})


class _Listing(Generic[T]):
    """What both kinds of lists know: how one page leads to the next."""

    def __init__(self, call: Call[dict[str, Any]], name: str, items: TypeAdapter[list[T]]) -> None:
        self._call = call
        self._name = name
        self._items = items
        self._onwards = "before" if call.asked.query.get("before") is not None else "after"

    def _page(self, answer: dict[str, Any]) -> tuple[Page[T], Call[dict[str, Any]] | None]:
        page = Page.of(answer, self._name, self._items)
        next_one = getattr(page, self._onwards)
        return page, None if next_one is None else self._call.continued(**{self._onwards: next_one})


class Pages(_Listing[T]):
    """A list. A loop over it goes over all; pages are asked for when it comes to them."""

    def __init__(self, sender: Sender, *listing: Any) -> None:
        super().__init__(*listing)
        self._sender = sender

    def __iter__(self) -> Iterator[T]:
        for page in self.pages():
            yield from page.items

    def pages(self) -> Iterator[Page[T]]:
        """The list a page at a time."""
        call: Call[dict[str, Any]] | None = self._call
        while call is not None:
            page, call = self._page(self._sender.send(call))
            yield page

    def first(self) -> Page[T]:
        """The first page."""
        return next(self.pages())


class AsyncPages(_Listing[T]):
    """A list. A loop over it goes over all; pages are asked for when it comes to them."""

    def __init__(self, sender: AsyncSender, *listing: Any) -> None:
        super().__init__(*listing)
        self._sender = sender

    async def __aiter__(self) -> AsyncIterator[T]:
        async for page in self.pages():
            for item in page.items:
                yield item

    async def pages(self) -> AsyncIterator[Page[T]]:
        """The list a page at a time."""
        call: Call[dict[str, Any]] | None = self._call
        while call is not None:
            page, call = self._page(await self._sender.send(call))
            yield page

    async def first(self) -> Page[T]:
        """The first page."""
        return await anext(aiter(self.pages()))
