"""Who may change what of a user. `by` is who asks for it; None: the command line."""

from uuid import UUID

from promptstack.repositories.access_models import Role, User
from promptstack.services.access.caller import Caller
from promptstack.services.access.emails import OPERATOR
from promptstack.services.errors import NotPermitted, WrongState

OWN_FIELDS = frozenset({"name", "preferred_provider"})
"""What users change of themselves."""


def is_person(user: User) -> bool:
    """Whether somebody can sign in as this user; the command line has one too."""
    return user.email != OPERATOR


def check_super_admin(by: Caller | None, what: str) -> None:
    """Raise `NotPermitted` where neither a super_admin nor the command line asks for it."""
    if by is not None and not by.is_super_admin:
        raise NotPermitted(f"Only a super_admin may {what}.")


def check_may_change(by: Caller | None, user: User, fields: set[str]) -> None:
    """Raise `NotPermitted` where these fields of this user are not theirs to change."""
    if by is None or by.is_super_admin or (by.user_id == user.id and fields <= OWN_FIELDS):
        return
    if not by.is_admin:
        raise NotPermitted("Users change only their own name and preferred provider.")
    if user.role != Role.USER or "role" in fields:
        raise NotPermitted("Only a super_admin may make or change administrators.")


def check_may_change_keys(by: Caller | None, owner: User) -> None:
    """Raise `NotPermitted` where a key of this user is not theirs to revoke or to limit."""
    if by is None or by.user_id != owner.id:
        check_may_change(by, owner, {"keys"})


def check_stays(user: User, role: Role | None, disabled: bool, super_admins: list[UUID]) -> None:
    """Raise an error where this would leave the deployment without a super_admin."""
    if not is_person(user):
        raise NotPermitted(f"{OPERATOR} is the command line's, and stays a super_admin.")
    stays = role in {None, Role.SUPER_ADMIN} and not disabled
    if super_admins == [user.id] and not stays:
        raise WrongState("This is the last super_admin. Make another one first.")
