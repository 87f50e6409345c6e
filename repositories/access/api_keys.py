"""API keys."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.orm import joinedload

from promptstack.repositories.access_models import ApiKey, User
from promptstack.repositories.base import BaseRepository, change_rows

LAST_USED_EVERY = timedelta(minutes=1)
"""How exact `last_used_at` is: a write for each request would cost more than the request."""


class ApiKeyRepository(BaseRepository[ApiKey]):
    """Keys to the HTTP door, by their hash."""

    model = ApiKey

    def get_all(self, user_id: UUID | None = None) -> Sequence[ApiKey]:
        """All keys, or those of a user, with their users, oldest first."""
        query = select(ApiKey).options(joinedload(ApiKey.user)).order_by(ApiKey.id)
        if user_id is not None:
            query = query.where(ApiKey.user_id == user_id)
        return self._session.scalars(query).all()

    def revoke(self, key_id: UUID) -> bool:
        """Mark a key as revoked; False when there is none or it is revoked already."""
        revoked = (
            update(ApiKey)
            .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
            .values(revoked_at=func.now())
        )
        return self._session.scalar(revoked.returning(ApiKey.id)) is not None

    def rotate(self, key_id: UUID, *, key_hash: str, prefix: str, seconds: float) -> bool:
        """Give a key a new secret; the one it has now opens for `seconds` more.

        False for a key that opens nothing. A still older secret ends at once.
        """
        rotated = (
            update(ApiKey)
            .where(ApiKey.id == key_id, _is_open())
            .values(
                key_hash=key_hash,
                prefix=prefix,
                previous_hash=ApiKey.key_hash,
                previous_until=func.now() + timedelta(seconds=seconds),
            )
        )
        return self._session.scalar(rotated.returning(ApiKey.id)) is not None

    def find(self, key_hash: str) -> ApiKey | None:
        """Find a key, with its user, by the hash of a secret that is not outdated.

        It may be revoked or expired.
        """
        is_previous = and_(ApiKey.previous_hash == key_hash, ApiKey.previous_until > func.now())
        query = (
            select(ApiKey)
            .options(joinedload(ApiKey.user))
            .where(or_(ApiKey.key_hash == key_hash, is_previous))
        )
        return self._session.scalars(query).one_or_none()

    def note_use(self, key: ApiKey) -> None:
        """Note that a key and its user were here, at most once in `LAST_USED_EVERY`."""
        for table, row in ((ApiKey, key.id), (User, key.user_id)):
            seen = ApiKey.last_used_at if table is ApiKey else User.last_seen_at
            is_old = or_(seen.is_(None), seen < func.now() - LAST_USED_EVERY)
            change_rows(
                self._session,
                update(table).where(table.id == row, is_old).values({seen.key: func.now()}),
            )


def _is_open() -> ColumnElement[bool]:
    return and_(
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()),
    )
