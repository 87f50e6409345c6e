"""How many may watch at once, in this process and of one user."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from promptstack.services.events.errors import TooManyWatchers, WatchersFull

FULL_RETRY_SECONDS = 5.0


class Room:
    """Counts who watches."""

    def __init__(self, most: int, most_of_user: int) -> None:
        self._most = most
        self._most_of_user = most_of_user
        self._of_users: Counter[UUID] = Counter()

    @property
    def taken(self) -> int:
        """How many watch now."""
        return self._of_users.total()

    def check(self, user_id: UUID) -> None:
        """Raise `WatchersFull` or `TooManyWatchers` where a user may not watch one thing more."""
        if self.taken >= self._most:
            raise WatchersFull(
                f"{self._most} watch here already (MAX_WATCHERS); try again later.",
                retry_after=FULL_RETRY_SECONDS,
            )
        if self._of_users[user_id] >= self._most_of_user:
            raise TooManyWatchers(
                f"You watch {self._most_of_user} things here already (MAX_WATCHERS_OF_USER); end "
                "one of these first.",
                retry_after=FULL_RETRY_SECONDS,
            )

    @contextmanager
    def of(self, user_id: UUID) -> Iterator[None]:
        """Count a user in this context. Raises as `check`."""
        self.check(user_id)
        self._of_users[user_id] += 1
        try:
            yield
        finally:
            self._of_users -= Counter([user_id])
