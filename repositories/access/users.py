"""Users."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from promptstack.repositories.access_models import Role, User
from promptstack.repositories.base import BaseRepository, change_rows
from promptstack.repositories.models import new_id
from promptstack.repositories.pages import Page, PageQuery

NOTED_EVERY = timedelta(minutes=1)
"""How exact `last_seen_at` is: a write for each request would cost more than the request."""


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

    def search(self, asked: PageQuery, query: str = "", *, role: Role | None = None) -> Page[User]:
        """Users whose name or e-mail contains `query`, whatever its case, oldest first."""
        conditions = [
            or_(
                User.name.icontains(query, autoescape=True),
                User.email.icontains(query, autoescape=True),
            )
        ]
        if role is not None:
            conditions.append(User.role == role)
        return self.get_page(asked, *conditions, newest_first=False)

    def add_if_new(self, **columns: Any) -> bool:
        """Add a user unless there is one with this e-mail. Returns whether it was added."""
        added = insert(User).values({"id": new_id(), **columns}).on_conflict_do_nothing()
        return change_rows(self._session, added) == 1

    def lock(self, user_id: UUID) -> User | None:
        """Read a user as it is now, and let nobody else change it in this transaction.

        Rows that refer to the user, such as jobs, may be added meanwhile.
        """
        query = select(User).where(User.id == user_id).with_for_update(key_share=True)
        return self._session.scalars(query.execution_options(populate_existing=True)).one_or_none()

    def lock_super_admins(self) -> Sequence[User]:
        """The super_admins that aren't disabled; nobody else changes one in this transaction."""
        query = (
            select(User)
            .where(User.role == Role.SUPER_ADMIN, User.disabled_at.is_(None))
            .order_by(User.id)
            .with_for_update(key_share=True)
        )
        return self._session.scalars(query.execution_options(populate_existing=True)).all()

    def set_disabled(self, user_id: UUID, *, disabled: bool) -> None:
        """Disable a user, or enable them again."""
        time = func.now() if disabled else None
        change_rows(self._session, update(User).where(User.id == user_id).values(disabled_at=time))

    def note_seen(self, user_id: UUID) -> None:
        """Note that a user was here, at most once in `NOTED_EVERY`."""
        is_old = or_(User.last_seen_at.is_(None), User.last_seen_at < func.now() - NOTED_EVERY)
        seen = update(User).where(User.id == user_id, is_old).values(last_seen_at=func.now())
        change_rows(self._session, seen)
