"""Ways to sign in: each finds out who somebody is. A further one, such as OIDC, belongs here.

What follows is the same for all: a session is opened, and the audit log has a line.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

from promptstack.repositories.access.users import NOTED_EVERY
from promptstack.repositories.access_models import Role, Tier, User
from promptstack.repositories.audit_models import ActorKind, AuditResult
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.access.attempt_limits import Attempt, AttemptLimits
from promptstack.services.access.caller import Caller
from promptstack.services.access.emails import normalised_email
from promptstack.services.access.errors import IdentityUnknown, SignInRefused, TooManyAttempts
from promptstack.services.access.passwords import Passwords
from promptstack.services.access.sessions import (
    BrowserSession,
    Origin,
    SessionService,
    Tokens,
)
from promptstack.services.access.user_rules import is_person
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.log import AuditLog
from promptstack.services.errors import InvalidInput, UserDisabled

NOBODY = UUID(int=0)

Opened = TypeVar("Opened", Tokens, BrowserSession)


class SignIn:
    """Signs people in, by a password or by what a trusted proxy says."""

    def __init__(
        self,
        ledger: Ledger,
        audit: AuditLog,
        passwords: Passwords,
        limits: AttemptLimits,
        sessions: SessionService,
        *,
        proxy_creates_users: bool = False,
    ) -> None:
        self._ledger = ledger
        self._audit = audit
        self._passwords = passwords
        self._limits = limits
        self._sessions = sessions
        self._proxy_creates_users = proxy_creates_users

    def for_tokens(self, email: str, password: str, origin: Origin) -> Tokens:
        """Sign a program in by a password. Raises `SignInRefused` and `TooManyAttempts`."""
        return self._by_password(email, password, origin, self._sessions.open_tokens)

    def for_browser(self, email: str, password: str, origin: Origin) -> BrowserSession:
        """Sign a browser in, alike."""
        return self._by_password(email, password, origin, self._sessions.open_browser)

    def _by_password(
        self,
        email: str,
        password: str,
        origin: Origin,
        open_session: Callable[[UnitOfWork, User, Origin], Opened],
    ) -> Opened:
        email = _readable(email)
        user, attempt = self._begin(email, origin)
        kept = user.password_hash if user and user.disabled_at is None else None
        is_right, rehashed = self._passwords.verify(password, kept)
        with self._ledger.transaction() as unit:
            # Once more: it may have been disabled, or got another password, meanwhile.
            user = unit.users.lock(user.id) if user and is_right else None
            if user and user.disabled_at is None and user.password_hash == kept:
                if rehashed is not None:
                    unit.users.update(user, password_hash=rehashed)
                opened = open_session(unit, user, origin)
                unit.users.note_seen(user.id)
                actor = Actor(ActorKind.USER, user.id, user.email, address=origin.address)
                about = ObjectKind.USER.of(user.id)
                self._audit.record(unit, actor=actor, action=Action.SIGN_IN, object=about)
            else:
                opened = None
                self._audit.record(
                    unit,
                    actor=Actor.unknown(origin.address, email),
                    action=Action.SIGN_IN,
                    result=AuditResult.REFUSED,
                )
        if opened is None:
            raise SignInRefused("The e-mail address or the password is wrong.")
        self._limits.succeeded(attempt)
        return opened

    def change_password(self, caller: Caller, current: str, new: str, origin: Origin) -> None:
        """Change a caller's own password; their other sessions end.

        Raises `SignInRefused` for a wrong one, `TooManyAttempts`, and `InvalidInput` for a new one
        that is not good enough.
        """
        user, attempt = self._begin(caller.email, origin)
        kept = user.password_hash if user else None
        if not self._passwords.verify(current, kept)[0] or user is None:
            self._audit.record_alone(
                actor=Actor.of(caller),
                action=Action.PASSWORD_CHANGED,
                object=ObjectKind.USER.of(caller.user_id),
            )
            raise SignInRefused("The current password is wrong.")
        self._limits.succeeded(attempt)  # whatever the new one is like: it was no guess
        self._passwords.check(new, email=user.email, name=user.name)
        hashed = self._passwords.hash(new)
        with self._ledger.transaction() as unit:
            user = unit.users.lock(user.id)
            if user is None or user.password_hash != kept:
                raise SignInRefused("The current password is wrong.")
            unit.users.update(user, password_hash=hashed)
            ended = unit.sessions.revoke_all(user.id, but=caller.session_id)
            self._audit.record(
                unit,
                actor=Actor.of(caller),
                action=Action.PASSWORD_CHANGED,
                object=ObjectKind.USER.of(user.id),
                detail={"sessions": ended},
            )

    def by_proxy(self, identity: str, address: str) -> Caller:
        """Return who a trusted proxy says it is, by e-mail. Raises `NotAuthenticated`.

        Nothing is kept: the proxy says so with each request.
        """
        try:
            email = normalised_email(identity)
        except InvalidInput:
            raise IdentityUnknown("The proxy names no e-mail address.") from None
        with self._ledger.transaction() as unit:
            user = unit.users.get_by_email(email)
            if user is None and self._proxy_creates_users:
                user = self._add(unit, email, address)
            if user is None:
                raise IdentityUnknown(
                    "The proxy has signed you in, and nobody has made you a user here: ask an "
                    "administrator."
                )
            if not is_person(user):
                raise IdentityUnknown(f"Nobody signs in as {user.email}.")
            if user.disabled_at is not None:
                raise UserDisabled("This user is disabled.")
            if user.last_seen_at is None or _now() - user.last_seen_at > NOTED_EVERY:
                unit.users.note_seen(user.id)
            return Caller(
                user_id=user.id,
                email=user.email,
                role=Role(user.role),
                tier=Tier(user.tier),
                is_beta_tester=user.is_beta_tester,
                address=address,
            )

    def _add(self, unit: UnitOfWork, email: str, address: str) -> User | None:
        if unit.users.add_if_new(email=email):
            self._audit.record(
                unit,
                actor=Actor(ActorKind.PROXY, email=email, address=address),
                action=Action.USER_CREATED,
                object=ObjectKind.USER.of(email),
            )
        return unit.users.get_by_email(email)

    def _begin(self, email: str, origin: Origin) -> tuple[User | None, Attempt]:
        """Find the user, and take an attempt from their limit and their address'."""
        with self._ledger.transaction() as unit:
            user = unit.users.get_by_email(email)
            # Asked for nobody as well: it takes the same time.
            is_known = unit.sessions.has_been_at(user.id if user else NOBODY, origin.address)
        try:
            return user, self._limits.take(email, origin.address, is_known=is_known)
        except TooManyAttempts as error:
            if error.is_news:
                actor = Actor.unknown(origin.address, email)
                self._audit.record_alone(actor=actor, action=Action.SIGN_IN_LIMITED)
            raise


def _readable(email: str) -> str:
    """The address in its one spelling; what is no address is nobody's, and answered alike."""
    try:
        return normalised_email(email)
    except InvalidInput:
        return ""


def _now() -> datetime:
    return datetime.now(UTC)
