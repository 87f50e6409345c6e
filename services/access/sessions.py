"""Sessions: opened when somebody has signed in, and looked at with each request after that.

A program has an access token for some minutes, and a refresh token for the next one. A browser has
a cookie. Both name a row of the ledger, so that an end acts at once.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from promptstack.repositories.access.sessions import FoundSession
from promptstack.repositories.access_models import Role, SignInSession, Tier, User
from promptstack.repositories.audit_models import AuditResult
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.access.access_tokens import AccessTokens
from promptstack.services.access.caller import Caller
from promptstack.services.access.errors import (
    ForgedRequest,
    RefreshTokenInvalid,
    RefreshTokenReused,
    SessionExpired,
    SessionInvalid,
    SessionRevoked,
)
from promptstack.services.access.signing import SigningKeys
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.log import AuditLog
from promptstack.services.errors import UserDisabled
from promptstack.services.text import make_storable

TOKEN_BYTES = 32
"""256 random bits can't be guessed, so a fast hash is enough to keep a token."""
REFRESH_PREFIX = "psr_"
"""Lets a scanner of repositories know one that was left in code."""
MOST_SESSIONS = 100
"""Sessions of one user; the oldest ends when there are more."""
MAX_AGENT_CHARACTERS = 200


@dataclass(frozen=True)
class Origin:
    """Where a request comes from, as far as it says."""

    address: str = ""
    user_agent: str = ""


@dataclass(frozen=True, repr=False)
class Tokens:
    """What a program gets to sign its requests with."""

    access_token: str
    expires_in: int
    """Seconds until the access token expires."""
    refresh_token: str


@dataclass(frozen=True, repr=False)
class BrowserSession:
    """What a browser gets."""

    cookie: str
    csrf_token: str
    """Sent with each request that changes something: another site can't read it."""
    lifetime_seconds: int


class SessionService:
    """Opens, renews, finds and ends sessions."""

    def __init__(
        self,
        ledger: Ledger,
        audit: AuditLog,
        tokens: AccessTokens,
        csrf_keys: SigningKeys,
        *,
        lifetime: timedelta,
    ) -> None:
        self._ledger = ledger
        self._audit = audit
        self._tokens = tokens
        self._csrf_keys = csrf_keys
        self._lifetime = lifetime

    def open_tokens(self, unit: UnitOfWork, user: User, origin: Origin) -> Tokens:
        """Open a session of a program in the transaction that found out who it is."""
        session = self._open(unit, user, origin, cookie_hash=None)
        return self._issue(unit, session)

    def open_browser(self, unit: UnitOfWork, user: User, origin: Origin) -> BrowserSession:
        """Open a session of a browser, alike."""
        cookie = secrets.token_urlsafe(TOKEN_BYTES)
        session = self._open(unit, user, origin, cookie_hash=_hash(cookie))
        return BrowserSession(
            cookie, self.csrf_token(session.id), int(self._lifetime.total_seconds())
        )

    def _open(
        self, unit: UnitOfWork, user: User, origin: Origin, *, cookie_hash: str | None
    ) -> SignInSession:
        session = unit.sessions.open(
            user.id,
            lifetime=self._lifetime,
            cookie_hash=cookie_hash,
            address=origin.address,
            user_agent=make_storable(origin.user_agent)[:MAX_AGENT_CHARACTERS],
        )
        unit.sessions.keep_newest(user.id, MOST_SESSIONS)
        return session

    def _issue(self, unit: UnitOfWork, session: SignInSession) -> Tokens:
        refresh_token = REFRESH_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        unit.refresh_tokens.create(token_hash=_hash(refresh_token), session_id=session.id)
        access_token = self._tokens.make(session.user_id, session.id)
        return Tokens(access_token, self._tokens.lifetime_seconds, refresh_token)

    def refresh(self, refresh_token: str, origin: Origin) -> Tokens:
        """Return the next tokens of a session. Raises `NotAuthenticated`, by the reason.

        A refresh token that comes a second time was copied, or its answer was lost: nobody can
        tell, so the session ends. Of two at the same time, one is the second.
        """
        token_hash = _hash(refresh_token)
        with self._ledger.transaction() as unit:
            session_id = unit.refresh_tokens.use(token_hash)
            if session_id is not None:
                session = _checked(unit.sessions.find(session_id)).session
                unit.refresh_tokens.forget_used(session_id, self._lifetime)
                unit.sessions.extend(session_id, self._lifetime)
                _note_use(unit, session)
                return self._issue(unit, session)
            is_known = self._end_family(unit, token_hash, origin)
        if is_known:
            raise RefreshTokenReused(
                "The refresh token was used before, so its session is ended. Sign in again."
            )
        raise RefreshTokenInvalid("The refresh token is not valid. Sign in again.")

    def _end_family(self, unit: UnitOfWork, token_hash: str, origin: Origin) -> bool:
        """End the session of a token that was used before. Returns whether there was one."""
        session_id = unit.refresh_tokens.session_of(token_hash)
        found = session_id and unit.sessions.find(session_id)
        if not found:
            return False
        unit.sessions.revoke(found.session.id)
        self._audit.record(
            unit,
            actor=Actor.unknown(origin.address, found.user.email),
            action=Action.TOKEN_REUSED,
            object=ObjectKind.SESSION.of(found.session.id),
            result=AuditResult.REFUSED,
        )
        return True

    def authenticate(self, access_token: str, address: str = "") -> Caller:
        """Return whose access token this is. Raises `NotAuthenticated`, by the reason."""
        claims = self._tokens.read(access_token)
        with self._ledger.transaction() as unit:
            found = unit.sessions.find(claims.session_id)
            is_theirs = found is not None and found.user.id == claims.user_id
            return _caller(unit, found if is_theirs else None, address)

    def authenticate_cookie(self, cookie: str, address: str = "") -> Caller:
        """Return whose browser has this cookie. Raises `NotAuthenticated`, by the reason."""
        with self._ledger.transaction() as unit:
            return _caller(unit, unit.sessions.find_by_cookie(_hash(cookie)), address)

    def csrf_token(self, session_id: UUID) -> str:
        """Return what a page of ours sends with a request, and another site can't know."""
        return self._csrf_keys.sign(str(session_id))

    def check_csrf(self, session_id: UUID | None, token: str) -> None:
        """Raise `ForgedRequest` where this is not the token of the session."""
        if not self._csrf_keys.accepts(str(session_id), token):
            raise ForgedRequest(
                "The request lacks the token that shows it comes from this site's own page. Send "
                "X-CSRF-Token with the value of the cookie whose name ends with csrf."
            )

    def end(self, caller: Caller) -> None:
        """End the session of a caller."""
        if caller.session_id is None:
            return
        with self._ledger.transaction() as unit:
            if unit.sessions.revoke(caller.session_id):
                self._audit.record(
                    unit,
                    actor=Actor.of(caller),
                    action=Action.SIGN_OUT,
                    object=ObjectKind.SESSION.of(caller.session_id),
                )

    def end_all(self, caller: Caller) -> int:
        """End all sessions of a caller. Returns how many ended."""
        with self._ledger.transaction() as unit:
            ended = unit.sessions.revoke_all(caller.user_id)
            self._audit.record(
                unit,
                actor=Actor.of(caller),
                action=Action.SIGN_OUT_EVERYWHERE,
                object=ObjectKind.USER.of(caller.user_id),
                detail={"sessions": ended},
            )
        return ended


def _caller(unit: UnitOfWork, found: FoundSession | None, address: str) -> Caller:
    session = _checked(found).session
    if found is not None and not found.is_noted:
        _note_use(unit, session)
    user = session.user
    return Caller(
        user_id=user.id,
        email=user.email,
        role=Role(user.role),
        tier=Tier(user.tier),
        is_beta_tester=user.is_beta_tester,
        session_id=session.id,
        address=address,
    )


def _note_use(unit: UnitOfWork, session: SignInSession) -> None:
    # In the order in which users are disabled: first the user, then the sessions.
    unit.users.note_seen(session.user_id)
    unit.sessions.note_use(session.id)


def _checked(found: FoundSession | None) -> FoundSession:
    """The session, which is open. Raises `NotAuthenticated`, by the reason."""
    if found is None:
        raise SessionInvalid("There is no such session. Sign in again.")
    if found.user.disabled_at is not None:
        raise UserDisabled("This user is disabled.")
    if found.session.revoked_at is not None:
        raise SessionRevoked("The session was ended. Sign in again.")
    if found.is_over:
        raise SessionExpired("The session has expired. Sign in again.")
    return found


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
