"""API keys: each is shown once, when it is made, and stored as a hash."""

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from promptstack.repositories.access.api_keys import LAST_USED_EVERY
from promptstack.repositories.access_models import ApiKey, Role, Scope, Tier, User
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.access.caller import Caller
from promptstack.services.errors import (
    InvalidInput,
    KeyExpired,
    KeyRevoked,
    NotAuthenticated,
    NotFound,
    UserDisabled,
)
from promptstack.services.text import check_name
from promptstack.services.validation.ids import find_id, read_id

PREFIX = "ps_"
SHOWN_CHARACTERS = len(PREFIX) + 8
"""How much of a key is kept for a person to know it by. 200 random bits of it stay unknown."""
MAX_EMAIL_CHARACTERS = 254
"""The limit of RFC 5321; PostgreSQL can index it."""
MAX_NAME_CHARACTERS = 200
KEY_BYTES = 32
"""256 random bits can't be guessed, so a fast hash is enough to store a key."""
ROTATION_SECONDS = 86_400.0
"""How long the secret before a rotation still opens: a day to bring the new one everywhere."""
OPERATOR = "operator@localhost"
"""The user of the command line: who reaches the ledger without a key may do everything."""
USUAL_SCOPES = frozenset(Scope) - {Scope.ADMIN}


@dataclass(frozen=True)
class KeyView:
    """What may be shown of a key."""

    id: UUID
    email: str
    name: str
    prefix: str
    scopes: Sequence[Scope]
    providers: Sequence[str] | None
    models: Sequence[str] | None
    requests_a_minute: int | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    rotated_until: datetime | None
    """Until when the secret before the last rotation opens."""
    revoked_at: datetime | None


class KeyService:
    """Makes and checks API keys."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def create(
        self,
        email: str,
        name: str,
        *,
        scopes: Iterable[Scope | str] = USUAL_SCOPES,
        expires_at: datetime | None = None,
    ) -> str:
        """Make a key for the user with this e-mail address, who is added if new; return the key.

        It can't be shown again. Raises `InvalidInput` for something that is no e-mail address or
        no scope, and for the scope `admin` where the user is no administrator.
        """
        name = check_name(name, "The key's name")
        if len(name) > MAX_NAME_CHARACTERS:
            raise InvalidInput(f"The key's name has at most {MAX_NAME_CHARACTERS} characters.")
        wanted = _read_scopes(scopes)
        key = _new_secret()
        with self._ledger.transaction() as unit:
            user = _find_or_add(unit, email, name)
            if Scope.ADMIN in wanted and user.role == Role.USER:
                raise InvalidInput(
                    f"{user.email} is no administrator, so no key of theirs can be one's. "
                    f"First: promptstack users set-role {user.email} admin."
                )
            unit.api_keys.create(
                user_id=user.id,
                name=name,
                prefix=key[:SHOWN_CHARACTERS],
                key_hash=_hash(key),
                scopes=sorted(wanted),
                expires_at=expires_at,
            )
        return key

    def authenticate(self, key: str, address: str = "") -> Caller:
        """Return whose key this is. Raises `NotAuthenticated`, by the reason."""
        with self._ledger.transaction() as unit:
            found = unit.api_keys.find(_hash(key)) if key.startswith(PREFIX) else None
            if found is None:
                raise NotAuthenticated("The API key is not valid.")
            _check_open(found)
            if found.last_used_at is None or _now() - found.last_used_at > LAST_USED_EVERY:
                unit.api_keys.note_use(found)
            return Caller(
                user_id=found.user_id,
                email=found.user.email,
                role=Role(found.user.role),
                tier=Tier(found.user.tier),
                is_beta_tester=found.user.is_beta_tester,
                # A scope that a later version knows is none of ours.
                scopes=frozenset(Scope(scope) for scope in found.scopes if scope in set(Scope)),
                key_id=found.id,
                address=address,
            )

    def get_all(self, owner: UUID | None = None) -> list[KeyView]:
        """All keys, or those of a user, oldest first, without their secrets."""
        with self._ledger.transaction() as unit:
            return [_view(key) for key in unit.api_keys.get_all(owner)]

    def find(self, given: str) -> UUID:
        """The id of the only key whose id begins so. Raises the errors of `find_id`."""
        with self._ledger.transaction() as unit:
            return find_id(unit.api_keys, "key", given)

    def rotate(self, key_id: UUID | str) -> str:
        """Return a new secret of a key; the one it has now opens for a day more.

        Raises `InvalidInput`, and `NotFound` for a key that opens nothing.
        """
        key_id = read_id(key_id, "key")
        key = _new_secret()
        with self._ledger.transaction() as unit:
            if not unit.api_keys.rotate(
                key_id,
                key_hash=_hash(key),
                prefix=key[:SHOWN_CHARACTERS],
                seconds=ROTATION_SECONDS,
            ):
                raise NotFound(f"There is no key {key_id} that could be rotated.")
        return key

    def revoke(self, key_id: UUID | str) -> None:
        """Revoke a key. Raises `InvalidInput` and `NotFound`."""
        key_id = read_id(key_id, "key")
        with self._ledger.transaction() as unit:
            if not unit.api_keys.revoke(key_id):
                raise NotFound(f"There is no key {key_id} that could be revoked.")


def _find_or_add(unit: UnitOfWork, email: str, name: str) -> User:
    email = check_name(email.strip(), "The e-mail address")
    if email.count("@") != 1 or email.startswith("@") or email.endswith("@"):
        raise InvalidInput(f"{email[:80]!r} is not an e-mail address.")
    if len(email) > MAX_EMAIL_CHARACTERS:
        raise InvalidInput(f"An e-mail address has at most {MAX_EMAIL_CHARACTERS} characters.")
    role = Role.SUPER_ADMIN if email == OPERATOR else Role.USER
    user = unit.users.get_by_email(email)
    return user or unit.users.create(email=email, name=name, role=role)


def _read_scopes(given: Iterable[Scope | str]) -> frozenset[Scope]:
    try:
        return frozenset(map(Scope, given))
    except ValueError:
        raise InvalidInput(f"A scope is one of {', '.join(Scope)}.") from None


def _check_open(key: ApiKey) -> None:
    if key.revoked_at is not None:
        raise KeyRevoked("The API key was revoked.")
    if key.expires_at is not None and key.expires_at <= _now():
        raise KeyExpired(f"The API key expired at {key.expires_at:%Y-%m-%d %H:%M} UTC.")
    if key.user.disabled_at is not None:
        raise UserDisabled("The user of this API key is disabled.")


def _view(key: ApiKey) -> KeyView:
    return KeyView(
        id=key.id,
        email=key.user.email,
        name=key.name,
        prefix=key.prefix,
        scopes=[Scope(scope) for scope in key.scopes if scope in set(Scope)],
        providers=key.providers,
        models=key.models,
        requests_a_minute=key.requests_a_minute,
        created_at=key.created_at,
        expires_at=key.expires_at,
        last_used_at=key.last_used_at,
        rotated_until=key.previous_until,
        revoked_at=key.revoked_at,
    )


def _new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _now() -> datetime:
    return datetime.now(UTC)
