"""API keys: each is shown once, when it is made, and stored as a hash."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from promptstack.repositories.models import ApiKey
from promptstack.repositories.session import Ledger
from promptstack.services.errors import InvalidInput, NotAuthenticated, NotFound
from promptstack.services.text import check_name
from promptstack.services.validation.ids import find_id, read_id

PREFIX = "ps_"
MAX_EMAIL_CHARACTERS = 254
"""The limit of RFC 5321; PostgreSQL can index it."""
MAX_NAME_CHARACTERS = 200
KEY_BYTES = 32
"""256 random bits can't be guessed, so a fast hash is enough to store a key."""


@dataclass(frozen=True)
class Caller:
    """Who makes a request."""

    user_id: UUID
    is_admin: bool


@dataclass(frozen=True)
class KeyView:
    """What may be shown of a key."""

    id: UUID
    email: str
    name: str
    is_admin: bool
    created_at: datetime
    revoked_at: datetime | None


class KeyService:
    """Makes and checks API keys."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def create(self, email: str, name: str, *, is_admin: bool = False) -> str:
        """Make a key for the user with this e-mail address, who is added if new; return the key.

        It can't be shown again. Being an administrator is a right of the key, not of the user.
        Raises `InvalidInput` for something that is no e-mail address.
        """
        name = check_name(name, "The key's name")
        if len(name) > MAX_NAME_CHARACTERS:
            raise InvalidInput(f"The key's name has at most {MAX_NAME_CHARACTERS} characters.")
        email = check_name(email.strip(), "The e-mail address")
        if email.count("@") != 1 or email.startswith("@") or email.endswith("@"):
            raise InvalidInput(f"{email[:80]!r} is not an e-mail address.")
        if len(email) > MAX_EMAIL_CHARACTERS:
            raise InvalidInput(f"An e-mail address has at most {MAX_EMAIL_CHARACTERS} characters.")
        key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
        with self._ledger.transaction() as unit:
            user = unit.users.get_by_email(email) or unit.users.create(email=email, name=name)
            unit.api_keys.create(user_id=user.id, name=name, key_hash=_hash(key), is_admin=is_admin)
        return key

    def authenticate(self, key: str) -> Caller:
        """Return whose key this is. Raises `NotAuthenticated`."""
        with self._ledger.transaction() as unit:
            found = unit.api_keys.find_valid(_hash(key)) if key.startswith(PREFIX) else None
            if found is None:
                raise NotAuthenticated("The API key is not valid.")
            return Caller(found.user_id, found.is_admin)

    def get_all(self) -> list[KeyView]:
        """All keys, oldest first, without their secrets."""
        with self._ledger.transaction() as unit:
            return [_view(key) for key in unit.api_keys.get_all()]

    def find(self, given: str) -> UUID:
        """The id of the only key whose id begins so. Raises the errors of `find_id`."""
        with self._ledger.transaction() as unit:
            return find_id(unit.api_keys, "key", given)

    def revoke(self, key_id: UUID | str) -> None:
        """Revoke a key. Raises `InvalidInput` and `NotFound`."""
        key_id = read_id(key_id, "key")
        with self._ledger.transaction() as unit:
            if not unit.api_keys.revoke(key_id):
                raise NotFound(f"There is no key {key_id} that could be revoked.")


def _view(key: ApiKey) -> KeyView:
    return KeyView(key.id, key.user.email, key.name, key.is_admin, key.created_at, key.revoked_at)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
