"""Sessions of users who have signed in, and their refresh tokens."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update
from sqlalchemy.orm import joinedload

from promptstack.repositories.access.users import NOTED_EVERY
from promptstack.repositories.access_models import RefreshToken, SignInSession, User
from promptstack.repositories.base import BaseRepository, change_rows

KNOWN_FOR = timedelta(days=30)
"""So long after its end a session is kept: where it came from is a known address of its user."""


@dataclass(frozen=True)
class FoundSession:
    """A session with its user, as one statement reads them by the database's clock."""

    session: SignInSession
    is_over: bool
    """Whether its time is over."""
    is_noted: bool
    """Whether its last use is noted as exactly as it needs to be."""

    @property
    def user(self) -> User:
        """Whose it is."""
        return self.session.user


class SessionRepository(BaseRepository[SignInSession]):
    """Sessions: each request with one reads it, so that its end acts at once."""

    model = SignInSession

    def open(self, user_id: UUID, *, lifetime: timedelta, **columns: str | None) -> SignInSession:
        """Add a session that ends after `lifetime`."""
        return self.create(user_id=user_id, expires_at=func.now() + lifetime, **columns)

    def find(self, session_id: UUID) -> FoundSession | None:
        """Find a session by its id."""
        return self._find(SignInSession.id == session_id)

    def find_by_cookie(self, cookie_hash: str) -> FoundSession | None:
        """Find the session of a browser."""
        return self._find(SignInSession.cookie_hash == cookie_hash)

    def _find(self, condition: ColumnElement[bool]) -> FoundSession | None:
        query = (
            select(
                SignInSession,
                SignInSession.expires_at <= func.now(),
                SignInSession.last_used_at > func.now() - NOTED_EVERY,
            )
            .options(joinedload(SignInSession.user))
            .where(condition)
        )
        row = self._session.execute(query).one_or_none()
        return None if row is None else FoundSession(*row)

    def note_use(self, session_id: UUID) -> None:
        """Note that a session was used, at most once in `NOTED_EVERY`."""
        is_old = SignInSession.last_used_at < func.now() - NOTED_EVERY
        used = update(SignInSession).where(SignInSession.id == session_id, is_old)
        change_rows(self._session, used.values(last_used_at=func.now()))

    def extend(self, session_id: UUID, lifetime: timedelta) -> None:
        """Let a session last for `lifetime` from now."""
        change_rows(
            self._session,
            update(SignInSession)
            .where(SignInSession.id == session_id)
            .values(expires_at=func.now() + lifetime),
        )

    def revoke(self, session_id: UUID) -> bool:
        """End a session; False where it has ended already."""
        return self._revoke(SignInSession.id == session_id) == 1

    def revoke_all(self, user_id: UUID, *, but: UUID | None = None) -> int:
        """End all sessions of a user, except one. Returns how many ended."""
        conditions = [SignInSession.user_id == user_id]
        if but is not None:
            conditions.append(SignInSession.id != but)
        return self._revoke(*conditions)

    def _revoke(self, *conditions: ColumnElement[bool]) -> int:
        ended = update(SignInSession).where(*conditions, SignInSession.revoked_at.is_(None))
        return change_rows(self._session, ended.values(revoked_at=func.now()))

    def has_been_at(self, user_id: UUID, address: str) -> bool:
        """Whether a user has signed in from an address before."""
        known = select(SignInSession.id).where(
            SignInSession.user_id == user_id,
            SignInSession.address == address,
            SignInSession.expires_at > func.now() - KNOWN_FOR,
        )
        return self._session.scalar(known.limit(1)) is not None

    def keep_newest(self, user_id: UUID, most: int) -> None:
        """Delete the sessions of a user beyond the newest `most`, and those that ended long ago.

        Ended ones are counted apart: who signs in and out often ends no session that is open.
        """
        is_open = and_(SignInSession.revoked_at.is_(None), SignInSession.expires_at > func.now())
        order = func.row_number().over(partition_by=is_open, order_by=SignInSession.id.desc())
        ranked = (
            select(SignInSession.id, SignInSession.expires_at, order.label("place"))
            .where(SignInSession.user_id == user_id)
            .subquery()
        )
        is_old = or_(ranked.c.place > most, ranked.c.expires_at <= func.now() - KNOWN_FOR)
        old = delete(SignInSession).where(SignInSession.id.in_(select(ranked.c.id).where(is_old)))
        change_rows(self._session, old)


class RefreshTokenRepository(BaseRepository[RefreshToken]):
    """Refresh tokens. Each is used once; of two users at the same time, one is the first."""

    model = RefreshToken

    def use(self, token_hash: str) -> UUID | None:
        """Use a token up. Returns its session; None where it was used before, or never made."""
        used = (
            update(RefreshToken)
            .where(RefreshToken.token_hash == token_hash, RefreshToken.used_at.is_(None))
            .values(used_at=func.now())
        )
        return self._session.scalar(used.returning(RefreshToken.session_id))

    def session_of(self, token_hash: str) -> UUID | None:
        """The session of a token that was used before."""
        query = select(RefreshToken.session_id).where(RefreshToken.token_hash == token_hash)
        return self._session.scalar(query)

    def forget_used(self, session_id: UUID, age: timedelta) -> None:
        """Delete used tokens that would be over by now, even if nobody had used them."""
        change_rows(
            self._session,
            delete(RefreshToken).where(
                RefreshToken.session_id == session_id, RefreshToken.used_at < func.now() - age
            ),
        )
