"""Idempotency keys: a request that is sent again finds what the first one has made."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from promptstack.repositories.base import change_rows
from promptstack.repositories.idempotency_models import IdempotencyKey


@dataclass(frozen=True)
class KeyedRequest:
    """A request that makes something, and the key by which it is known when it is sent again."""

    user_id: UUID
    key: str
    action: str
    """What is done, for example `create collection`: a key is for one of them."""
    request_hash: str
    """Of all that the caller has said. Another one with the same key is refused."""


@dataclass(frozen=True)
class Made:
    """What a key is known for."""

    action: str
    request_hash: str
    object_id: UUID

    def is_by(self, request: KeyedRequest) -> bool:
        """Whether it was made by the same request."""
        return (self.action, self.request_hash) == (request.action, request.request_hash)


class IdempotencyRepository:
    """Keys, each of one user."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def claim(self, request: KeyedRequest, object_id: UUID) -> Made | None:
        """Note that `request` makes this object, in the transaction that makes it; None is done.

        Else what was made with its key before. It waits for another transaction that has claimed
        the key and is not over: of two at once, one makes the object.
        """
        values = {**vars(request), "object_id": object_id}
        added = insert(IdempotencyKey).values(**values).on_conflict_do_nothing()
        if change_rows(self._session, added):
            return None
        return self.find(request)

    def find(self, request: KeyedRequest) -> Made | None:
        """Return what was made with this key."""
        columns = (IdempotencyKey.action, IdempotencyKey.request_hash, IdempotencyKey.object_id)
        row = self._session.execute(
            select(*columns).where(
                IdempotencyKey.user_id == request.user_id, IdempotencyKey.key == request.key
            )
        ).one_or_none()
        return None if row is None else Made(*row)

    def prune(self, retention: float, limit: int = 500) -> int:
        """Delete up to `limit` keys that are `retention` seconds old; how many."""
        old = (
            select(IdempotencyKey.user_id, IdempotencyKey.key)
            .where(IdempotencyKey.created_at < func.now() - timedelta(seconds=retention))
            .order_by(IdempotencyKey.created_at)
            .limit(limit)
            .subquery()
        )
        statement = delete(IdempotencyKey).where(
            IdempotencyKey.user_id == old.c.user_id, IdempotencyKey.key == old.c.key
        )
        return change_rows(self._session, statement)
