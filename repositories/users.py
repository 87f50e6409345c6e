"""Users and their API keys."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import joinedload

from promptstack.repositories.base import BaseRepository
from promptstack.repositories.models import ApiKey, User


class UserRepository(BaseRepository[User]):
    """Users; their e-mail is unique whatever its case."""

    model = User

    def get_by_email(self, email: str) -> User | None:
        """Find a user by e-mail, whatever its case; PostgreSQL says which letters are the same."""
        query = select(User).where(func.lower(User.email) == func.lower(email))
        return self._session.scalars(query).one_or_none()

    def search(self, query: str, limit: int = 100) -> Sequence[User]:
        """Users whose name or e-mail contains `query` literally, whatever its case."""
        found = or_(
            User.name.icontains(query, autoescape=True),
            User.email.icontains(query, autoescape=True),
        )
        return self._session.scalars(select(User).where(found).order_by(User.id).limit(limit)).all()


class ApiKeyRepository(BaseRepository[ApiKey]):
    """Keys to the HTTP door, by their hash."""

    model = ApiKey

    def get_all(self) -> Sequence[ApiKey]:
        """All keys with their users, oldest first."""
        query = select(ApiKey).options(joinedload(ApiKey.user)).order_by(ApiKey.id)
        return self._session.scalars(query).all()

    def revoke(self, key_id: UUID) -> bool:
        """Mark a key as revoked; False when there is none or it is revoked already."""
        revoked = (
            update(ApiKey)
            .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
            .values(revoked_at=func.now())
        )
        return self._session.scalar(revoked.returning(ApiKey.id)) is not None

    def find_valid(self, key_hash: str) -> ApiKey | None:
        """Find a key that isn't revoked, with its user."""
        query = (
            select(ApiKey)
            .options(joinedload(ApiKey.user))
            .where(ApiKey.key_hash == key_hash, ApiKey.revoked_at.is_(None))
        )
        return self._session.scalars(query).one_or_none()
