"""Users."""

from collections.abc import Sequence

from sqlalchemy import func, or_, select

from promptstack.repositories.access_models import Role, User
from promptstack.repositories.base import BaseRepository


class UserRepository(BaseRepository[User]):
    """Users; their e-mail is unique whatever its case."""

    model = User

    def get_by_email(self, email: str) -> User | None:
        """Find a user by e-mail, whatever its case; PostgreSQL says which letters are the same."""
        query = select(User).where(func.lower(User.email) == func.lower(email))
        return self._session.scalars(query).one_or_none()

    def get_admins(self) -> Sequence[User]:
        """All administrators that aren't disabled, oldest first."""
        query = select(User).where(
            User.role.in_([Role.ADMIN, Role.SUPER_ADMIN]), User.disabled_at.is_(None)
        )
        return self._session.scalars(query.order_by(User.id)).all()

    def search(self, query: str, limit: int = 100) -> Sequence[User]:
        """Users whose name or e-mail contains `query` literally, whatever its case."""
        found = or_(
            User.name.icontains(query, autoescape=True),
            User.email.icontains(query, autoescape=True),
        )
        return self._session.scalars(select(User).where(found).order_by(User.id).limit(limit)).all()
