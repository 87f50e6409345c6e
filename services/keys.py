"""API keys: made once, shown once, kept as a hash."""

import hashlib
import secrets
from dataclasses import dataclass
from uuid import UUID

from repositories.session import Ledger
from services.errors import InvalidInput, NotAuthenticated
from services.text import check_storable

PREFIX = "ps_"
MAX_EMAIL_CHARACTERS = 254
"""RFC 5321; it also keeps the address within what PostgreSQL indexes."""
KEY_BYTES = 32
"""256 random bits: too many to guess, so a plain fast hash is enough to keep them by."""


@dataclass(frozen=True)
class Caller:
    """Who makes a request."""

    user_id: UUID
    is_admin: bool


class KeyService:
    """Makes and checks API keys."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def create(self, email: str, name: str, *, is_admin: bool = False) -> str:
        """Make a key for the user of this e-mail, who is added if new; the key itself.

        It can't be shown again. Raises `InvalidInput` for something that is no e-mail address.
        """
        email = check_storable(email.strip(), "The e-mail address")
        if email.count("@") != 1 or email.startswith("@") or email.endswith("@"):
            raise InvalidInput(f"{email[:80]!r} is not an e-mail address.")
        if len(email) > MAX_EMAIL_CHARACTERS:
            raise InvalidInput(f"An e-mail address has at most {MAX_EMAIL_CHARACTERS} characters.")
        key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
        with self._ledger.transaction() as unit:
            user = unit.users.get_by_email(email) or unit.users.create(email=email, name=name)
            if is_admin:
                unit.users.update(user, is_admin=True)
            unit.api_keys.create(user_id=user.id, name=name, key_hash=_hash(key))
        return key

    def authenticate(self, key: str) -> Caller:
        """Return whose key this is. Raises `NotAuthenticated`."""
        with self._ledger.transaction() as unit:
            found = unit.api_keys.find_valid(_hash(key)) if key.startswith(PREFIX) else None
            if found is None:
                raise NotAuthenticated("The API key is not valid.")
            return Caller(found.user_id, found.user.is_admin)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
