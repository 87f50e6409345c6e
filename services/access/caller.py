"""Who makes a request, and what they may do."""

from dataclasses import dataclass
from typing import TypedDict
from uuid import UUID

from promptstack.repositories.access_models import Role, Scope, Tier
from promptstack.services.access.key_terms import KeyLimits

EVERYTHING = frozenset(Scope)
"""The scopes of who has signed in; an API key has those that it was made with."""


class OwnerKeywords(TypedDict):
    """Whose a job or run is: keywords of each call that accepts one."""

    user_id: UUID
    api_key_id: UUID | None
    key_limits: KeyLimits | None


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who makes a request: a user, by an API key or by having signed in."""

    user_id: UUID
    email: str
    role: Role = Role.USER
    tier: Tier = Tier.FREE
    is_beta_tester: bool = False
    scopes: frozenset[Scope] = EVERYTHING
    key_id: UUID | None = None
    """The API key that came with the request."""
    key_limits: KeyLimits | None = None
    """Whom the key's jobs may ask; None: anybody."""
    requests_a_minute: int | None = None
    """How many requests the key may send."""
    session_id: UUID | None = None
    """The session that the access token belongs to."""
    address: str = ""
    """Where the request came from."""

    @property
    def as_owner(self) -> OwnerKeywords:
        """The owner of what this request asks for."""
        return {
            "user_id": self.user_id,
            "api_key_id": self.key_id,
            "key_limits": self.key_limits,
        }

    @property
    def only_key(self) -> UUID | None:
        """The key whose jobs alone the caller retries; None: all of theirs.

        Other jobs may ask whom a limited key may not.
        """
        return None if self.key_limits is None else self.key_id

    @property
    def is_admin(self) -> bool:
        """Whether they may manage users and see everybody's work, by this way in."""
        return self.role is not Role.USER and Scope.ADMIN in self.scopes

    @property
    def is_super_admin(self) -> bool:
        """Whether they may make administrators, by this way in."""
        return self.role is Role.SUPER_ADMIN and Scope.ADMIN in self.scopes
