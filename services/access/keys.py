"""API keys: each is shown once, when it is made, and stored as a hash."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from promptstack.repositories.access.api_keys import LAST_USED_EVERY
from promptstack.repositories.access.presented_keys import PresentedKey
from promptstack.repositories.access_models import Role, Scope, Tier, User
from promptstack.repositories.idempotency import KeyedRequest
from promptstack.repositories.models import new_id
from promptstack.repositories.pages import FIRST_PAGE, Page, PageQuery
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.access.caller import Caller
from promptstack.services.access.emails import OPERATOR, normalised_email
from promptstack.services.access.key_terms import KeyLimits, KeyTerms, KeyView, known_scopes
from promptstack.services.access.user_rules import check_may_change_keys
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.log import AuditLog
from promptstack.services.errors import (
    InvalidInput,
    KeyExpired,
    KeyRevoked,
    NotAuthenticated,
    NotFound,
    UserDisabled,
)
from promptstack.services.idempotency.claims import claim_secret
from promptstack.services.validation.bounds import refused_in_words
from promptstack.services.validation.ids import find_id, read_id, read_owner

PREFIX = "ps_"
SHOWN_CHARACTERS = len(PREFIX) + 8
"""How much of a key is kept for a person to know it by. 200 random bits of it stay unknown."""
KEY_BYTES = 32
"""256 random bits can't be guessed, so a fast hash is enough to store a key."""
ROTATION_SECONDS = 86_400.0
"""How long the secret before a rotation still opens: a day to bring the new one everywhere."""
MAX_KEYS = 100
"""Of one user, that aren't revoked."""


@dataclass(frozen=True)
class IssuedKey:
    """A key and its secret, which is shown this once."""

    secret: str
    key: KeyView
    is_new_user: bool = False
    """Whether its user was added for it."""


class KeyService:
    """Makes and checks API keys. Who does it is recorded; unset, it is the command line."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def create(self, email: str, name: str, **terms: Any) -> str:
        """Make a key for the user with this e-mail address, who is added if new; return its secret.

        The terms are those of `KeyTerms`. Raises the errors of `issue`.
        """
        return self.issue(email, {"name": name, **terms}).secret

    def issue(
        self,
        email: str,
        terms: KeyTerms | dict[str, Any],
        *,
        by: Actor | None = None,
        keyed: KeyedRequest | None = None,
    ) -> IssuedKey:
        """Make a key for the user with this e-mail address, who is added if new.

        Raises `InvalidInput` for something that is no e-mail address, for wrong terms, for the
        scope `admin` where the user is no administrator, and where the user has too many keys; and
        what `claim_secret` raises for a request that was `keyed`.
        """
        with refused_in_words():
            terms = KeyTerms.model_validate(terms)
        secret = _new_secret()
        with self._ledger.transaction() as unit:
            user, is_new = _find_or_add(unit, email, by)
            key_id = new_id()
            claim_secret(unit, keyed, key_id)
            if Scope.ADMIN in terms.scopes and user.role == Role.USER:
                raise InvalidInput(
                    f"{user.email} is no administrator, so no key of theirs can be one's. "
                    f"First: promptstack users set-role {user.email} admin."
                )
            if unit.api_keys.count(user.id) >= MAX_KEYS:
                raise InvalidInput(
                    f"{user.email} has {MAX_KEYS} keys, which is the most. Revoke one first."
                )
            columns = terms.model_dump() | {"scopes": sorted(terms.scopes)}
            key = unit.api_keys.create(
                id=key_id,
                user_id=user.id,
                prefix=secret[:SHOWN_CHARACTERS],
                key_hash=_hash(secret),
                **columns,
            )
            detail = {"key_name": columns.pop("name"), "owner_id": user.id} | columns
            _record(unit, by, Action.KEY_CREATED, key.id, **detail)
            return IssuedKey(secret, KeyView.of(key), is_new)

    def authenticate(self, secret: str, address: str = "") -> Caller:
        """Return whose key this is. Raises `NotAuthenticated`, by the reason."""
        key = self.find_presented([secret]).get(secret)
        caller = self.caller_with(key, address)
        if key is not None:
            self.note_use(key)
        return caller

    def find_presented(self, secrets: Sequence[str]) -> dict[str, PresentedKey]:
        """Find the keys of these secrets by one statement; they may be revoked or expired."""
        hashes = {_hash(secret): secret for secret in secrets if secret.startswith(PREFIX)}
        if not hashes:
            return {}
        with self._ledger.statement() as statement:
            found = statement.presented_keys.find(list(hashes))
        return {secret: found[key_hash] for key_hash, secret in hashes.items() if key_hash in found}

    @staticmethod
    def caller_with(key: PresentedKey | None, address: str = "") -> Caller:
        """Return who may call with a key that was found. Raises `NotAuthenticated`."""
        if key is None:
            raise NotAuthenticated("The API key is not valid.")
        _check_open(key)
        return Caller(
            user_id=key.user_id,
            email=key.email,
            role=Role(key.role),
            tier=Tier(key.tier),
            is_beta_tester=key.is_beta_tester,
            scopes=frozenset(known_scopes(key.scopes)),
            key_id=key.id,
            key_limits=KeyLimits.of(key.providers, key.models),
            requests_a_minute=key.requests_a_minute,
            address=address,
        )

    def note_use(self, key: PresentedKey) -> None:
        """Note that a valid key is used, where that was not done for some time."""
        if is_use_unknown(key):
            with self._ledger.transaction() as unit:
                unit.api_keys.note_use(key.id, key.user_id)

    def get_all(self, owner: UUID | None = None) -> list[KeyView]:
        """All keys, or those of a user, oldest first, without their secrets."""
        user_id = read_owner(owner)
        with self._ledger.transaction() as unit:
            return [KeyView.of(key) for key in unit.api_keys.get_all(user_id)]

    def get_page(self, owner: UUID | None, asked: PageQuery = FIRST_PAGE) -> Page[KeyView]:
        """A page of all keys, or of those of a user, the newest first. Raises `InvalidInput`."""
        user_id = read_owner(owner)
        with self._ledger.transaction() as unit:
            return unit.api_keys.page_of(user_id, asked).of(KeyView.of)

    def find(self, given: str) -> UUID:
        """The id of the only key whose id, or whose secret, begins so.

        Raises the errors of `find_id`.
        """
        with self._ledger.transaction() as unit:
            if given.startswith(PREFIX):
                found = unit.api_keys.get_many(limit=2, prefix=given[:SHOWN_CHARACTERS])
                if len(found) == 1:
                    return found[0].id
            return find_id(unit.api_keys, "key", given)

    def rotate(
        self,
        key_id: UUID | str,
        *,
        owner: UUID | None = None,
        by: Actor | None = None,
        keyed: KeyedRequest | None = None,
    ) -> IssuedKey:
        """Give a key a new secret; the one it has now opens for a day more.

        Within that day, another rotation replaces the new one. Raises `InvalidInput`, and
        `NotFound` for a key that opens nothing or isn't the `owner`'s; and what `claim_secret`
        raises for a request that was `keyed`.
        """
        key_id, owner = read_id(key_id, "key"), read_owner(owner)
        secret = _new_secret()
        with self._ledger.transaction() as unit:
            claim_secret(unit, keyed, key_id)
            key = unit.api_keys.rotate(
                key_id,
                owner,
                key_hash=_hash(secret),
                prefix=secret[:SHOWN_CHARACTERS],
                seconds=ROTATION_SECONDS,
            )
            if key is None:
                raise NotFound(f"There is no key {key_id} that could be rotated.")
            _record(unit, by, Action.KEY_ROTATED, key.id, previous_until=key.previous_until)
            return IssuedKey(secret, KeyView.of(key))

    def revoke(
        self, key_id: UUID | str, *, owner: UUID | None = None, by: Caller | None = None
    ) -> KeyView:
        """Revoke a key, with the secret before its rotation.

        Raises `InvalidInput`, `NotPermitted` for a key of an administrator, and `NotFound` for one
        that is revoked or isn't the `owner`'s.
        """
        key_id, owner = read_id(key_id, "key"), read_owner(owner)
        with self._ledger.transaction() as unit:
            key = unit.api_keys.revoke(key_id, owner)
            if key is None:
                raise NotFound(f"There is no key {key_id} that could be revoked.")
            check_may_change_keys(by, key.user)
            _record(unit, Actor.of(by) if by else None, Action.KEY_REVOKED, key.id)
            return KeyView.of(key)


def _find_or_add(unit: UnitOfWork, email: str, by: Actor | None) -> tuple[User, bool]:
    """The user, and whether this added them."""
    email = normalised_email(email)
    role = Role.SUPER_ADMIN if email == OPERATOR else Role.USER
    user = unit.users.get_by_email(email)
    if user is not None:
        return user, False
    user = unit.users.create(email=email, role=role)
    AuditLog.record(
        unit,
        actor=by or Actor.command_line(),
        action=Action.USER_CREATED,
        object=ObjectKind.USER.of(user.id),
        detail={"role": role},
    )
    return user, True


def is_use_unknown(key: PresentedKey) -> bool:
    """Whether it was not noted for some time that a key is used."""
    return key.last_used_at is None or _now() - key.last_used_at > LAST_USED_EVERY


def _check_open(key: PresentedKey) -> None:
    if key.revoked_at is not None:
        raise KeyRevoked("The API key was revoked.")
    if key.expires_at is not None and key.expires_at <= _now():
        raise KeyExpired(f"The API key expired at {key.expires_at:%Y-%m-%d %H:%M} UTC.")
    if key.disabled_at is not None:
        raise UserDisabled("The user of this API key is disabled.")


def _record(
    unit: UnitOfWork, by: Actor | None, action: Action, key_id: UUID, **detail: Any
) -> None:
    AuditLog.record(
        unit,
        actor=by or Actor.command_line(),
        action=action,
        object=ObjectKind.KEY.of(key_id),
        detail=detail,
    )


def _new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _now() -> datetime:
    return datetime.now(UTC)
