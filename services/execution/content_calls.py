"""A provider call and the contents it asks for."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.accounting.upper_bounds import MostTokens
from promptstack.services.limiter.terms import Need
from promptstack.services.llm.requests import GenerationRequest


class Content(NamedTuple):
    """Something to ask for once, however many items have it."""

    hash: bytes
    positions: tuple[int, ...]
    text: str
    """Empty where there are messages."""
    messages: Sequence[Any] | None = None
    tries: int = 0
    """How often it failed by its own fault before this job was claimed."""
    parameters: Mapping[str, Any] | None = None
    """Of its own, in place of those of its run."""
    token_ids: tuple[int, ...] | None = None
    """What is embedded in place of a text."""


@dataclass(eq=False)
class WasteBudget:
    """How many contents the parts of a bisected call may still pay for without an answer."""

    left: int


@dataclass(eq=False)
class Call:
    """One question: a prompt, or texts that are embedded together."""

    contents: Sequence[Content]
    tries: int = 0
    """How often it failed by its own fault."""
    refusals: int = 0
    """How often the provider asked to slow down."""
    request: GenerationRequest | None = None
    """Built once, when it is first needed."""
    need: Need | None = None
    """The expected tokens; estimated once."""
    upper_bound: MostTokens | None = None
    """The most input and output tokens it can take; computed once."""
    waste_budget: WasteBudget | None = None
    """Shared by all parts of one bisected call; None for a whole call."""

    @property
    def hashes(self) -> list[bytes]:
        """The hashes of its contents."""
        return [content.hash for content in self.contents]

    @property
    def positions(self) -> Iterable[int]:
        """The positions of all items it serves."""
        return (position for content in self.contents for position in content.positions)

    def only(self, hashes: Collection[bytes]) -> "Call":
        """The same call with only these contents."""
        contents = [content for content in self.contents if content.hash in hashes]
        return self if len(contents) == len(self.contents) else self._part(contents)

    def split(self, size: int) -> "list[Call]":
        """Split it into calls of at most `size` contents."""
        if len(self.contents) <= size:
            return [self]
        starts = range(0, len(self.contents), size)
        return [self._part(self.contents[start : start + size]) for start in starts]

    def halves(self) -> "list[Call]":
        """Split it in two, which begin with no tries; a call with one content stays as it is."""
        if len(self.contents) == 1:
            return [self]
        middle = len(self.contents) // 2
        halves = self._part(self.contents[:middle]), self._part(self.contents[middle:])
        for half in halves:
            half.tries = half.contents[0].tries if len(half.contents) == 1 else 0
        return list(halves)

    def _part(self, contents: Sequence[Content]) -> "Call":
        return Call(contents, self.tries, waste_budget=self.waste_budget)


def reserve(
    unit: UnitOfWork,
    claim: Claim,
    hashes: Sequence[bytes],
    find_stored: Callable[[Sequence[bytes]], set[bytes]],
) -> tuple[set[bytes], set[bytes]]:
    """Reserve contents, so that no two jobs pay for the same one.

    Returns the contents that this job is to pay for, and those that have a stored answer. Another
    job has reserved the rest.
    """
    if not hashes:
        return set(), set()
    taken = unit.reservations.take(claim, hashes)
    # Since the caller looked, another job may have stored some and released them.
    stored = find_stored(list(taken))
    unit.reservations.release(claim, list(stored))
    return taken - stored, stored
