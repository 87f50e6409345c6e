"""API keys."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, case, func, or_, select, update
from sqlalchemy.orm import joinedload, selectinload

from promptstack.repositories.access_models import ApiKey, User
from promptstack.repositories.base import BaseRepository, change_rows
from promptstack.repositories.pages import Page, PageQuery, read_page

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

    def page_of(self, user_id: UUID | None, asked: PageQuery) -> Page[ApiKey]:
        """A page of keys with their users, newest first."""
        query = select(ApiKey)
        if user_id is not None:
            query = query.where(ApiKey.user_id == user_id)
        with_users = [joinedload(ApiKey.user)]
        return read_page(self._session, query, ApiKey.id, asked, options=with_users)

    def count(self, user_id: UUID) -> int:
        """How many keys of a user aren't revoked."""
        query = select(func.count()).where(ApiKey.user_id == user_id, ApiKey.revoked_at.is_(None))
        return self._session.scalar(query) or 0

    def revoke(self, key_id: UUID, user_id: UUID | None = None) -> ApiKey | None:
        """Mark a key as revoked; None when there is none, of this user, or it is revoked."""
        return self._change(
            [ApiKey.id == key_id, ApiKey.revoked_at.is_(None)], user_id, revoked_at=func.now()
        )

    def rotate(
        self, key_id: UUID, user_id: UUID | None, *, key_hash: str, prefix: str, seconds: float
    ) -> ApiKey | None:
        """Give a key a new secret; the one it has now opens for `seconds` more.

        While an older one opens still, that one stays, and the one it has now ends at once: whoever
        lost the answer of a rotation repeats it, and stops nothing that runs. None for a key that
        opens nothing, or isn't this user's.
        """
        is_repeated = ApiKey.previous_until > func.now()
        return self._change(
            [ApiKey.id == key_id, _is_open()],
            user_id,
            key_hash=key_hash,
            prefix=prefix,
            previous_hash=case((is_repeated, ApiKey.previous_hash), else_=ApiKey.key_hash),
            previous_until=case(
                (is_repeated, ApiKey.previous_until),
                else_=func.now() + timedelta(seconds=seconds),
            ),
        )

    def _change(
        self, which: list[ColumnElement[bool]], user_id: UUID | None, **values: Any
    ) -> ApiKey | None:
        if user_id is not None:
            which = [*which, ApiKey.user_id == user_id]
        changed = update(ApiKey).where(*which).values(values).returning(ApiKey)
        changed = changed.options(selectinload(ApiKey.user))
        return self._session.scalars(changed, execution_options={"populate_existing": True}).first()

    def note_use(self, key_id: UUID, user_id: UUID) -> None:
        """Note that a key and its user were here, at most once in `LAST_USED_EVERY`."""
        # The user first, as everywhere: two orders would be a deadlock.
        for table, row in ((User, user_id), (ApiKey, key_id)):
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
