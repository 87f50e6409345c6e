"""Roles of the database that may enqueue jobs in SQL: whose jobs, and what they may call."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from promptstack.repositories.access_models import SqlRole, User

_STATE = text("""
SELECT
    rolsuper,
    pg_has_role(rolname, (SELECT tableowner FROM pg_tables
        WHERE schemaname = current_schema() AND tablename = 'jobs'), 'USAGE') AS owns,
    has_schema_privilege(rolname, 'promptstack', 'USAGE') AND (
        SELECT bool_and(has_function_privilege(rolname, pg_proc.oid, 'EXECUTE')) FROM pg_proc
        WHERE pronamespace = 'promptstack'::regnamespace
        AND proname IN ('enqueue_generation', 'enqueue_embedding')
    ) AS may_enqueue
FROM pg_roles WHERE rolname = :role
""")
_RIGHTS = (
    ("USAGE", "SCHEMA promptstack"),
    ("EXECUTE", "FUNCTION promptstack.enqueue_generation"),
    ("EXECUTE", "FUNCTION promptstack.enqueue_embedding"),
)


class RoleState(NamedTuple):
    """What the database says of one of its roles."""

    is_super: bool
    owns: bool
    """Whether it may do all that the tables' owner may."""
    may_enqueue: bool


class BoundRole(NamedTuple):
    """A role, and whose jobs it enqueues."""

    role: str
    user_id: UUID
    email: str
    created_at: datetime


class SqlRoleRepository:
    """Binds roles of the database to users, and grants them the functions."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def state(self, role: str) -> RoleState | None:
        """What the database says of a role; None where there is none of this name."""
        row = self._session.execute(_STATE, {"role": role}).one_or_none()
        return None if row is None else RoleState(*row)

    def get_all(self) -> Sequence[BoundRole]:
        """All bound roles, by name."""
        query = (
            select(SqlRole.role, SqlRole.user_id, User.email, SqlRole.created_at)
            .join(User, User.id == SqlRole.user_id)
            .order_by(SqlRole.role)
        )
        return [BoundRole(*row) for row in self._session.execute(query)]

    def bind(self, role: str, user_id: UUID) -> None:
        """Let a role enqueue for this user, and for no other."""
        values = {"user_id": user_id, "created_at": func.now()}
        statement = insert(SqlRole).values(role=role, **values)
        self._session.execute(statement.on_conflict_do_update(index_elements=["role"], set_=values))

    def unbind(self, role: str) -> UUID | None:
        """Let a role enqueue for nobody; for whom it could, None where there was nobody."""
        gone = delete(SqlRole).where(SqlRole.role == role).returning(SqlRole.user_id)
        return self._session.scalar(gone)

    def grant(self, role: str) -> None:
        """Let a role call the functions."""
        for right, what in _RIGHTS:
            self._run(f"GRANT {right} ON {what} TO {self._quoted(role)}")

    def revoke(self, role: str) -> None:
        """Let a role no longer call the functions."""
        for right, what in _RIGHTS:
            self._run(f"REVOKE {right} ON {what} FROM {self._quoted(role)}")

    def _quoted(self, role: str) -> str:
        dialect = self._session.connection().dialect
        return dialect.identifier_preparer.quote_identifier(role)

    def _run(self, statement: str) -> None:
        self._session.connection().exec_driver_sql(statement.replace("%", "%%"))
