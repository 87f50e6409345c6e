"""`@cached`: the answers of a function are kept for a while, for all processes."""

import asyncio
import inspect
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar

from promptstack.services.cache.cache import Cache, checked_expire
from promptstack.services.cache.flights import Flight, Found
from promptstack.services.cache.keys import CallKeys
from promptstack.services.cache.stampede import Busy, Call, Lead, Terms

WAIT_SECONDS = 5.0
MAX_WAIT_SECONDS = 60.0
POLL_SECONDS = 0.05

P = ParamSpec("P")
T = TypeVar("T")


def cached(
    expire: float,
    *,
    cache: Cache | Callable[[], Cache] | None = None,
    key: str | None = None,
    ignore: Collection[str] = (),
    stale: float = 0.0,
    wait: float = WAIT_SECONDS,
) -> Callable[[Callable[P, T]], "CachedFunction[P, T]"]:
    """Keep a function's answers for `expire` seconds. It may be a method, sync or async.

    Who waits holds a thread, unless the function is async or is asked by `aged_later`.

    A key names the function and all arguments but those of `ignore`; `key="usage:{user_id}"` says
    otherwise. Where many ask at once, one computes. The others wait for it up to `wait` seconds
    and then compute for themselves; with `stale`, they take an answer that is older by up to that.

    A method uses the cache in its object's `cache`; a function names one. Errors aren't kept.
    """
    terms = Terms(checked_expire(expire), stale, wait)
    checked_expire(expire + stale)
    if not 0 < wait <= MAX_WAIT_SECONDS:
        raise ValueError(f"Others wait for more than 0 s, up to {MAX_WAIT_SECONDS:g} s.")

    def decorate(function: Callable[P, T]) -> CachedFunction[P, T]:
        return CachedFunction(function, CallKeys(function, key, ignore), terms, cache)

    return decorate


@dataclass(frozen=True)
class Aged(Generic[T]):
    """An answer, and how many seconds ago it was computed."""

    value: T
    age: float


class CachedFunction(Generic[P, T]):
    """A function whose answers are kept."""

    def __init__(
        self,
        function: Callable[P, T],
        keys: CallKeys,
        terms: Terms,
        cache: Cache | Callable[[], Cache] | None,
        owner: Any = None,
    ) -> None:
        self._function: Callable[..., Any] = function
        self._keys = keys
        self._terms = terms
        self._cache = cache
        self._owner: tuple[Any, ...] = () if owner is None else (owner,)
        self._is_async = inspect.iscoroutinefunction(function)
        update_wrapper(self, function)

    def __get__(self, owner: Any, _: type[Any] | None = None) -> "CachedFunction[..., T]":
        """The method of an object."""
        if owner is None:
            return self
        return CachedFunction(self._function, self._keys, self._terms, self._cache, owner)

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> T:
        """Return the answer, computed now or a while ago."""
        if self._is_async:
            return self._value_later(arguments, named)  # type: ignore[return-value]
        return self._find(arguments, named).value  # type: ignore[no-any-return]

    def aged(self, *arguments: P.args, **named: P.kwargs) -> "Aged[T]":
        """Return the answer of a sync function with its age."""
        return self._find(arguments, named)

    async def aged_later(self, *arguments: P.args, **named: P.kwargs) -> "Aged[Any]":
        """Return the answer with its age. A sync function is computed in a thread."""
        return await self._find_later(arguments, named)

    def key(self, *arguments: P.args, **named: P.kwargs) -> str:
        """The key of a call."""
        return self._keys.of((*self._owner, *arguments), named)

    def invalidate(self, *arguments: P.args, **named: P.kwargs) -> bool:
        """Forget the answer of a call. Returns whether there was one."""
        return self._store().delete(self.key(*arguments, **named))

    def _store(self) -> Cache:
        if isinstance(self._cache, Cache):
            return self._cache
        if self._cache is not None:
            return self._cache()
        for owner in self._owner:
            if isinstance(found := getattr(owner, "cache", None), Cache):
                return found
        raise TypeError(f"{self._function.__qualname__} has no cache; give it cache=.")

    def _find(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> Aged[Any]:
        cache = self._store()
        call = Call(cache, self.key(*arguments, **named), self._terms)
        while True:
            step = call.look()
            if isinstance(step, Flight):
                step.ended.wait(self._terms.wait)
                step = step.found or Busy()
            elif isinstance(step, Busy):
                time.sleep(POLL_SECONDS)
            if isinstance(step, Found):
                return _read(cache, step)
            if isinstance(step, Lead):
                try:
                    value = self._function(*self._owner, *arguments, **named)
                except BaseException:
                    call.give_up(step)
                    raise
                call.hand_in(step, value)
                return Aged(value, 0.0)

    async def _find_later(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> Aged[Any]:
        """The same on an event loop: threads ask Redis, and no thread waits for who computes."""
        cache = self._store()
        call = Call(cache, self.key(*arguments, **named), self._terms)
        while True:
            step = await asyncio.to_thread(call.look)
            if isinstance(step, Flight):
                until = time.monotonic() + self._terms.wait
                while not step.ended.is_set() and time.monotonic() < until:  # noqa: ASYNC110 - threads set it
                    await asyncio.sleep(POLL_SECONDS)
                step = step.found or Busy()
            elif isinstance(step, Busy):
                await asyncio.sleep(POLL_SECONDS)
            if isinstance(step, Found):
                return _read(cache, step)
            if isinstance(step, Lead):
                try:
                    value = await self._compute(arguments, named)
                except BaseException:
                    # Not awaited: who waits for this call may be cancelling it.
                    asyncio.get_running_loop().run_in_executor(None, call.give_up, step)
                    raise
                await asyncio.to_thread(call.hand_in, step, value)
                return Aged(value, 0.0)

    async def _compute(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if self._is_async:
            return await self._function(*self._owner, *arguments, **named)
        return await asyncio.to_thread(self._function, *self._owner, *arguments, **named)

    async def _value_later(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return (await self._find_later(arguments, named)).value


def _read(cache: Cache, found: Found) -> Aged[Any]:
    return Aged(cache.codec.load(found.text), max(0.0, time.monotonic() - found.computed_at))
