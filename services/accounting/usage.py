"""Usage and cost: the sums over provider calls."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from promptstack.repositories.pages import Page, PageQuery
from promptstack.repositories.session import Ledger
from promptstack.repositories.usage import Group, Unsettled, Usage
from promptstack.services.errors import InvalidInput, NotFound
from promptstack.services.jobs.views import CallView
from promptstack.services.text import check_storable
from promptstack.services.validation.bounds import checked_limit, checked_time
from promptstack.services.validation.ids import read_owner


class UsageService:
    """Tells what was used, and what it cost."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def calls(
        self,
        *,
        only_unsettled: bool = False,
        since: datetime | None = None,
        owner: UUID | None = None,
        limit: int = 50,
    ) -> list[CallView]:
        """The newest provider calls, newest first.

        With `only_unsettled`, the calls that may have been paid for without an answer: the request
        may have left, and its worker died, timed out, or still waits.
        """
        asked = PageQuery(checked_limit(limit))
        return self.page_of_calls(
            asked, only_unsettled=only_unsettled, since=since, owner=owner
        ).rows

    def page_of_calls(
        self,
        asked: PageQuery,
        *,
        only_unsettled: bool = False,
        since: datetime | None = None,
        owner: UUID | None = None,
    ) -> Page[CallView]:
        """A page of them."""
        since, user_id = checked_time(since, "since"), read_owner(owner)
        with self._ledger.transaction() as unit:
            found = unit.usage.calls(
                asked, only_unsettled=only_unsettled, since=since, user_id=user_id
            )
            return found.of(CallView.model_validate)

    def unsettled(
        self, *, since: datetime | None = None, owner: UUID | None = None
    ) -> list[Unsettled]:
        """The calls that may have been paid for without an answer, summed by state."""
        since = checked_time(since, "since")
        user_id = read_owner(owner)
        with self._ledger.transaction() as unit:
            return unit.usage.unsettled(since=since, user_id=user_id)

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

        With `owner` or `email`, only the calls of that user. Raises `InvalidInput` if a group
        comes twice or the times are in the wrong order, and `NotFound` if there is no such user.
        """
        if len(set(by)) != len(by):
            raise InvalidInput("Name each group once.")
        since, until = checked_time(since, "since"), checked_time(until, "until")
        if since is not None and until is not None and since >= until:
            raise InvalidInput("`since` must be before `until`.")
        for named in (email, provider, model):
            check_storable(named or "", "The filter")
        with self._ledger.transaction() as unit:
            user_id = read_owner(owner)
            if email is not None:
                user = unit.users.get_by_email(email)
                if user is None or owner not in {None, user.id}:
                    raise NotFound("There is no such user.")
                user_id = user.id
            return unit.usage.sums(
                by, since=since, until=until, user_id=user_id, provider=provider, model=model
            )
