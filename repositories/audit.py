"""The audit log: entries are added, read, and deleted when they are old."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, or_, select, text

from promptstack.repositories.audit_models import AuditEntry
from promptstack.repositories.base import BaseRepository, change_rows
from promptstack.repositories.pages import Page, PageQuery

_SET_RETENTION = text("SELECT set_config('promptstack.audit_retention', :seconds, true)")
"""For this transaction alone. The table's trigger refuses every DELETE without it."""


@dataclass(frozen=True)
class AuditFilter:
    """Which entries are asked for; what is None is not asked for."""

    actor: str | None = None
    """An e-mail whatever its case, or the id of a user or a key."""
    action: str | None = None
    """The whole name, or its first words: `key` finds `key.created`."""
    object_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class AuditRepository(BaseRepository[AuditEntry]):
    """Entries of the audit log."""

    model = AuditEntry

    def find(
        self, wanted: AuditFilter, asked: PageQuery, *, newest_first: bool = True
    ) -> Page[AuditEntry]:
        """Return a page of entries in their order."""
        return self.get_page(asked, *_conditions(wanted), newest_first=newest_first)

    def prune(self, retention: float, limit: int = 500) -> int:
        """Delete up to `limit` entries that are `retention` seconds old; how many."""
        self._session.execute(_SET_RETENTION, {"seconds": str(retention)})
        old = (
            select(AuditEntry.id)
            .where(AuditEntry.at < func.now() - timedelta(seconds=retention))
            .order_by(AuditEntry.at)
            .limit(limit)
        )
        return change_rows(self._session, delete(AuditEntry).where(AuditEntry.id.in_(old)))


def _conditions(wanted: AuditFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.actor is not None:
        conditions.append(_by(wanted.actor))
    if wanted.action is not None:
        is_action = AuditEntry.action == wanted.action
        conditions.append(
            or_(is_action, AuditEntry.action.startswith(f"{wanted.action}.", autoescape=True))
        )
    if wanted.object_id is not None:
        conditions.append(AuditEntry.object_id == wanted.object_id)
    if wanted.since is not None:
        conditions.append(AuditEntry.at >= wanted.since)
    if wanted.until is not None:
        conditions.append(AuditEntry.at < wanted.until)
    return conditions


def _by(actor: str) -> ColumnElement[bool]:
    try:
        named = UUID(actor)
    except ValueError:
        return func.lower(AuditEntry.email) == func.lower(actor)
    return or_(AuditEntry.user_id == named, AuditEntry.key_id == named)
