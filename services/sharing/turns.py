"""Whose turn it is: weighted deficit round robin between users.

Users stand in a ring. At each visit a user's credit grows by their weight beside the largest, and
it is their turn while there is credit. The last thing of a turn may cost more than is left; the
next visits then find less. So what users get is in the ratio of their weights, whatever single
things cost, up to one visit (Shreedhar and Varghese, 1995; with debts as in Adiseshu et al., 1996).
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping
from heapq import heapify, heapreplace
from math import ceil, floor
from uuid import UUID

NOBODY = UUID(int=0)
"""Stands for all work without a user."""


class Turns:
    """The turns of users who have something to do."""

    def __init__(self, last: UUID | None = None, credits_: Mapping[UUID, float] | None = None):
        """Go on after the turn of `last`, with what users have left of their turns."""
        self.last = last
        self.credits = dict(credits_ or {})

    def keep(self, users: Collection[UUID]) -> None:
        """Forget all others: who has nothing to do saves nothing up."""
        self.credits = {user: left for user, left in self.credits.items() if user in users}

    def next(self, weights: Mapping[UUID, float]) -> UUID:
        """Return whose turn it is of these users, given with their weights.

        Others whom `keep` has kept are passed over this time, and lose nothing.
        """
        walk = _Walk(self, weights)
        user = walk.go_on()
        walk.stop()
        return user

    def share_out(self, weights: Mapping[UUID, float], number: int) -> list[UUID]:
        """Give out so many things that cost 1 each, and charge them; whose each is, in order."""
        order: list[UUID] = []
        walk = _Walk(self, weights)
        while len(order) < number:
            user = walk.go_on()
            its_turn = min(ceil(self.credits[user]), number - len(order))
            order += [user] * its_turn
            self.charge(user, float(its_turn))
        walk.stop()
        return order

    def charge(self, user: UUID, cost: float) -> None:
        """Take what a user has got from their credit; a cost of 1 is a visit of the largest."""
        self.credits[user] = self.credits.get(user, 0.0) - cost


class _Walk:
    """Goes around the ring, from turn to turn.

    In between are visits of users who go on to owe something. When each has paid is known, so they
    are not gone through: what a walk costs is in the number of users and turns, whatever they owe.
    """

    def __init__(self, turns: Turns, weights: Mapping[UUID, float]) -> None:
        self._turns = turns
        largest = max(weights.values())
        ring = sorted(weights, key=_place)
        start = 0 if turns.last is None else bisect_right(ring, turns.last.int, key=_place)
        self._ring = ring[start:] + ring[:start]
        self._visits = [weights[user] / largest for user in self._ring]
        self._rounds = [0] * len(ring)
        """The round up to which each has got the credit of their visits."""
        self._at = 0, len(ring) - 1
        """The round and the place of the last turn."""
        self._next = [(self._next_round(place), place) for place in range(len(ring))]
        if self._ring[-1] == turns.last and turns.credits.get(turns.last, 0.0) > 0:
            self._next[-1] = self._at  # in the middle of a turn
        heapify(self._next)

    def go_on(self) -> UUID:
        """Go to the next turn, which is the last one's while there is credit. Returns whose."""
        while True:
            round_, place = self._at = self._next[0]
            user = self._ring[place]
            self._visit(place, round_)
            if self._turns.credits.get(user, 0.0) > 0:
                self._turns.last = user
                return user
            heapreplace(self._next, (self._next_round(place), place))

    def stop(self) -> None:
        """Give all others the credit of the visits until now."""
        round_, last = self._at
        for place in range(len(self._ring)):
            self._visit(place, round_ if place <= last else round_ - 1)

    def _visit(self, place: int, round_: int) -> None:
        """Give the credit of the visits up to this round."""
        user, visit = self._ring[place], self._visits[place]
        missed = round_ - self._rounds[place]
        if missed > 0:
            # Who was passed over in the middle of a turn has the rest of it now, and no more.
            credit = self._turns.credits.get(user, 0.0) + missed * visit
            self._turns.credits[user] = min(credit, 2 * visit)
            self._rounds[place] = round_

    def _next_round(self, place: int) -> int:
        """The round in which there will be credit."""
        owed = -self._turns.credits.get(self._ring[place], 0.0)
        return self._rounds[place] + max(0, floor(owed / self._visits[place])) + 1


def _place(user: UUID) -> int:
    return user.int
