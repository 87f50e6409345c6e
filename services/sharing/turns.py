"""Whose turn it is: weighted deficit round robin between users.

Users stand in a ring. At each visit a user's credit grows by their weight beside the largest, and
it is their turn while there is credit. The last thing of a turn may cost more than is left; the
next visits then find less. So what users get is in the ratio of their weights, whatever single
things cost, up to one visit (Shreedhar and Varghese, 1995; with debts as in Adiseshu et al., 1996).
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping
from math import floor
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
        ring, last = sorted(weights), self.last
        if last is not None and last in weights and self.credits.get(last, 0.0) > 0:
            return last
        start = 0 if last is None else bisect_right(ring, last)
        ring = ring[start:] + ring[:start]
        largest = max(weights.values())
        visits = {user: weights[user] / largest for user in ring}
        # Of rounds in which all only pay what they owe, none is gone through.
        skipped = min(max(0, floor(-self.credits.get(user, 0.0) / visits[user])) for user in ring)
        for user in ring:
            self.credits[user] = self.credits.get(user, 0.0) + skipped * visits[user]
        while True:
            for user in ring:
                # Who was passed over in the middle of a turn has the rest of it now, and no more.
                credit = min(self.credits[user] + visits[user], 2 * visits[user])
                self.credits[user], self.last = credit, user
                if credit > 0:
                    return user

    def share_out(self, weights: Mapping[UUID, float], number: int) -> list[UUID]:
        """Give out so many things that cost 1 each, and charge them; whose each is, in order."""
        order: list[UUID] = []
        while len(order) < number:
            order.append(self.next(weights))
            self.charge(order[-1], 1.0)
        return order

    def charge(self, user: UUID, cost: float) -> None:
        """Take what a user has got from their credit; a cost of 1 is a visit of the largest."""
        self.credits[user] = self.credits.get(user, 0.0) - cost
