"""Roles of the database that may enqueue jobs in SQL, each for one user (docs/sql.md)."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from promptstack.repositories.access.sql_roles import BoundRole
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.log import AuditLog
from promptstack.services.errors import NotFound, NotPermitted
from promptstack.services.text import check_name


class SqlRoleView(BaseModel):
    """A role of the database, and whose jobs it enqueues."""

    model_config = ConfigDict(frozen=True)

    role: str
    user_id: UUID
    email: str
    created_at: datetime


class SqlRoleService:
    """Grants and revokes the functions that enqueue. The database's own rights do the rest."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def get_all(self) -> Sequence[SqlRoleView]:
        """All roles that may enqueue, by name."""
        with self._ledger.transaction() as unit:
            return list(map(_view, unit.sql_roles.get_all()))

    def grant(self, role: str, user_id: UUID, *, by: Actor) -> SqlRoleView:
        """Let a role enqueue jobs of a user, and do nothing else here.

        A role that is bound already is bound to this user from now on. Raises `NotFound` for a role
        or a user that is not there, and `NotPermitted` where the functions are not ours to grant.
        """
        check_name(role, "The role")
        with self._ledger.transaction() as unit:
            if unit.sql_roles.state(role) is None:
                raise NotFound(
                    f"The database has no role {role}. Make it first, for example by "
                    f"CREATE ROLE {role} LOGIN PASSWORD '...'."
                )
            if unit.users.get(user_id) is None:
                raise NotFound(f"There is no user {user_id}.")
            unit.sql_roles.bind(role, user_id)
            unit.sql_roles.grant(role)
            state = unit.sql_roles.state(role)
            if state is None or not state.may_enqueue:
                raise NotPermitted(
                    f"The database did not let us grant {role} the functions. Run this as the role "
                    "that owns them: the one that ran `promptstack migrate`."
                )
            _record(unit, Action.SQL_ROLE_GRANTED, role, by, user_id)
            [bound] = [each for each in unit.sql_roles.get_all() if each.role == role]
            return _view(bound)

    def revoke(self, role: str, *, by: Actor) -> None:
        """Let a role enqueue no more. Raises `NotFound` for one that couldn't."""
        check_name(role, "The role")
        with self._ledger.transaction() as unit:
            user_id = unit.sql_roles.unbind(role)
            if user_id is None:
                raise NotFound(f"The role {role} may enqueue for no user anyway.")
            if unit.sql_roles.state(role) is not None:
                unit.sql_roles.revoke(role)
            _record(unit, Action.SQL_ROLE_REVOKED, role, by, user_id)


def _view(bound: BoundRole) -> SqlRoleView:
    return SqlRoleView(**bound._asdict())


def _record(unit: UnitOfWork, action: Action, role: str, by: Actor, user_id: UUID) -> None:
    of_role = ObjectKind.SQL_ROLE.of(role)
    AuditLog.record(unit, actor=by, action=action, object=of_role, detail={"owner_id": user_id})
