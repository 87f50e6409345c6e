"""Ids as callers give them: whole, or their first characters where these are unique."""

import re
from typing import Any
from uuid import UUID

from promptstack.repositories.base import BaseRepository
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import AmbiguousId, InvalidInput, NotFound, WrongState

HEX_DIGITS = 32
NAMED = 5
"""Matches that an error names where several ids begin alike."""


def read_id(given: UUID | str, what: str) -> UUID:
    """The id of a `what`, which may be given as its whole text. Raises `InvalidInput`."""
    try:
        return given if isinstance(given, UUID) else UUID(str(given))
    except ValueError:
        raise InvalidInput(f"{given!a:.40} is no id of a {what}; a whole UUID is needed.") from None


def read_owner(owner: UUID | None) -> UUID | None:
    """The id of the user whose rows are asked for; None: everybody's. Raises `InvalidInput`."""
    return None if owner is None else read_id(owner, "user")


def check_user(unit: UnitOfWork, user_id: UUID | None) -> None:
    """Raise `NotFound` where there is no such user. None stands for no user."""
    if user_id is not None and unit.users.get(user_id) is None:
        raise NotFound(f"There is no user {user_id}.")


def check_signing_secret(unit: UnitOfWork, user_id: UUID | None) -> None:
    """Raise `WrongState` where a user has no secret to sign the webhooks of jobs and runs with."""
    if not unit.webhooks.has_own_secret(user_id):
        raise WrongState(
            "A webhook in a job or run is signed with your own secret, and there is none yet. Make "
            "it first: POST /webhooks/secret, or promptstack webhooks secret."
        )


def find_id(rows: BaseRepository[Any], what: str, given: str) -> UUID:
    """The id of the one row whose id begins so. A whole id is returned without a look.

    Raises `InvalidInput`, `NotFound`, and `AmbiguousId`, which names the matches.
    """
    digits = given.strip().lower().replace("-", "")
    if not re.fullmatch(rf"[0-9a-f]{{1,{HEX_DIGITS}}}", digits):
        raise InvalidInput(
            f"{given[:40]!a} is no id of a {what}, nor its beginning: that is hexadecimal digits "
            "and hyphens."
        )
    if len(digits) == HEX_DIGITS:
        return UUID(digits)
    first, last = UUID(digits.ljust(HEX_DIGITS, "0")), UUID(digits.ljust(HEX_DIGITS, "f"))
    found = rows.keys_between(first, last, limit=NAMED + 1)
    if not found:
        raise NotFound(f"There is no {what} whose id begins with {given}.")
    if len(found) > 1:
        names = ", ".join(map(str, found[:NAMED])) + (", ..." if len(found) > NAMED else "")
        raise AmbiguousId(f"The ids of several {what}s begin with {given}: {names}.")
    return found[0]
