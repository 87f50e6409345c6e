"""Usage and cost, summed over what providers were asked."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from repositories.session import Ledger
from repositories.usage import Group, Usage
from services.errors import InvalidInput, NotFound


class UsageService:
    """Answers what was used, and what it cost."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def sums(
        self,
        by: Sequence[Group] = (Group.DAY, Group.MODEL),
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        owner: UUID | None = None,
        email: str | None = None,
        provider: str | None = None,
        model: str | None = None,
    ) -> list[Usage]:
        """Sum the calls that began from `since` until before `until`.

        With `owner`, only that user's; with `email`, only the user's of that address. Raises
        `InvalidInput` for the same group twice and times in the wrong order, `NotFound` for a
        user who isn't there.
        """
        if len(set(by)) != len(by):
            raise InvalidInput("Name each group once.")
        if since is not None and until is not None and since >= until:
            raise InvalidInput("`since` must be before `until`.")
        with self._ledger.transaction() as unit:
            user_id = owner
            if email is not None:
                user = unit.users.get_by_email(email)
                if user is None or owner not in {None, user.id}:
                    raise NotFound("There is no such user.")
                user_id = user.id
            return unit.usage.sums(
                by, since=since, until=until, user_id=user_id, provider=provider, model=model
            )
