"""A method is written once: what it asks for. Both kinds of clients have theirs from that.

`Client` then returns the answer, and `AsyncClient` a coroutine of it, with the same parameters and
the same docstring.
"""

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from pydantic import TypeAdapter

from promptstack_client.calls import Asked, Call, Route
from promptstack_client.feeds import Feed
from promptstack_client.paging import AsyncPages, Pages
from promptstack_client.sending import AsyncSender, Flow, Sender

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
AnySender = TypeVar("AnySender", bound=Sender | AsyncSender)


class Resource(Generic[AnySender]):
    """Methods that belong together, and what sends their calls."""

    def __init__(self, sender: AnySender) -> None:
        self._sender: AnySender = sender


class _Method(Generic[P, R]):
    """What a method asks for, and how it is sent."""

    route: Route[Any] | None = None

    def __init__(self, ask: Callable[Concatenate[Any, P], R]) -> None:
        self.ask = ask
        self.__doc__ = ask.__doc__

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self

        @wraps(self.ask)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return self._sent(instance._sender, self.ask(instance, *args, **kwargs))

        return method

    def _sent(self, sender: Any, asked: Any) -> Any:
        raise NotImplementedError


class Method(_Method[P, Asked], Generic[P, T]):
    """A call of one route."""

    def __init__(self, route: Route[T], ask: Callable[Concatenate[Any, P], Asked]) -> None:
        super().__init__(ask)
        self.route: Route[T] = route

    def call(self, resource: Any, *args: P.args, **kwargs: P.kwargs) -> Call[T]:
        """The call that the method would send."""
        return Call.of(self.route, self.ask(resource, *args, **kwargs))

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Resource[Sender], owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(
        self, instance: Resource[AsyncSender], owner: type
    ) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return super().__get__(instance, owner)

    def _sent(self, sender: Any, asked: Asked) -> Any:
        return sender.send(Call.of(self.route, asked))


class Listing(_Method[P, Asked], Generic[P, T]):
    """A list of one route, in pages."""

    def __init__(
        self,
        route: Route[dict[str, Any]],
        inside: str,
        item: type[T],
        ask: Callable[Concatenate[Any, P], Asked],
    ) -> None:
        super().__init__(ask)
        self.route: Route[dict[str, Any]] = route
        self.inside = inside
        self.item = item
        self._items: TypeAdapter[list[T]] = TypeAdapter(list[item])  # type: ignore[valid-type]

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Resource[Sender], owner: type) -> Callable[P, Pages[T]]: ...
    @overload
    def __get__(
        self, instance: Resource[AsyncSender], owner: type
    ) -> Callable[P, AsyncPages[T]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return super().__get__(instance, owner)

    def _sent(self, sender: Any, asked: Asked) -> Any:
        kind: Any = Pages if isinstance(sender, Sender) else AsyncPages
        return kind(sender, Call.of(self.route, asked), self.inside, self._items)


class Composed(_Method[P, Flow[T]], Generic[P, T]):
    """Several calls, one after the other."""

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Resource[Sender], owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(
        self, instance: Resource[AsyncSender], owner: type
    ) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return super().__get__(instance, owner)

    def _sent(self, sender: Any, asked: Flow[T]) -> Any:
        return sender.drive(asked)


class Streamed(_Method[P, Feed[T]], Generic[P, T]):
    """An answer that comes piece by piece."""

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self, instance: Resource[Sender], owner: type
    ) -> Callable[P, Generator[T, None, None]]: ...
    @overload
    def __get__(
        self, instance: Resource[AsyncSender], owner: type
    ) -> Callable[P, AsyncGenerator[T, None]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return super().__get__(instance, owner)

    def _sent(self, sender: Any, asked: Feed[T]) -> Any:
        return sender.stream(asked)


class Collected(_Method[P, Feed[T]], Generic[P, T]):
    """An answer that comes piece by piece, and is given when all of it is there."""

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Resource[Sender], owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(
        self, instance: Resource[AsyncSender], owner: type
    ) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return super().__get__(instance, owner)

    def _sent(self, sender: Any, asked: Feed[T]) -> Any:
        return sender.read(asked)


def sends(
    method: str, path: str, answer: type[T], **details: Any
) -> Callable[[Callable[Concatenate[Any, P], Asked]], Method[P, T]]:
    """A method that calls one route; `details` are fields of `Route`."""
    return lambda ask: Method(Route(method, path, answer, **details), ask)


def lists(
    path: str, item: type[T], inside: str
) -> Callable[[Callable[Concatenate[Any, P], Asked]], Listing[P, T]]:
    """A method that lists what one route has, in the field `inside` of each page."""
    return lambda ask: Listing(Route("GET", path, dict[str, Any]), inside, item, ask)
