"""Whose objects a list shows."""

from uuid import UUID

from promptstack.repositories.session import Ledger
from promptstack.services.access.caller import Caller
from promptstack.services.errors import NotFound, NotPermitted
from promptstack.services.text import check_storable

EVERYBODY = "all"


class Owners:
    """Reads `?owner=`: everybody sees their own, and administrators may ask for others'."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def choose(self, caller: Caller, asked: str | None) -> UUID | None:
        """The user whose objects are shown; None for everybody's.

        `asked` is `all`, an e-mail address, or None for the caller's own. Raises `NotPermitted`
        where the caller is no administrator, before it looks whether there is such a user, and
        `NotFound` where there is none.
        """
        if asked is None or asked.lower() == caller.email.lower():
            return caller.user_id
        if not caller.is_admin:
            raise NotPermitted("Only administrators may ask for what belongs to others.")
        if asked == EVERYBODY:
            return None
        with self._ledger.transaction() as unit:
            user = unit.users.get_by_email(check_storable(asked, "The owner"))
            if user is None:
                raise NotFound("There is no user with this e-mail address.")
            return user.id
