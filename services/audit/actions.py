"""What is recorded, and on what it is done."""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID


class Action(StrEnum):
    """What somebody did. The part before the dot says what area it belongs to."""

    SIGN_IN = "sign_in"
    SIGN_OUT = "sign_out"
    SIGN_OUT_EVERYWHERE = "sign_out.everywhere"
    SIGN_IN_LIMITED = "sign_in.limited"
    """Too many tries, so that no password was looked at."""
    TOKEN_REUSED = "sign_in.token_reused"  # noqa: S105 - the name of an action
    """A refresh token came twice, so its session has ended."""

    USER_CREATED = "user.created"
    USER_CHANGED = "user.changed"
    USER_DISABLED = "user.disabled"
    USER_ENABLED = "user.enabled"
    ROLE_CHANGED = "user.role_changed"
    PASSWORD_CHANGED = "user.password_changed"  # noqa: S105 - the name of an action
    PASSWORD_RESET = "user.password_reset"  # noqa: S105 - the name of an action

    KEY_CREATED = "key.created"
    KEY_ROTATED = "key.rotated"
    KEY_REVOKED = "key.revoked"
    SQL_ROLE_GRANTED = "sql_role.granted"
    SQL_ROLE_REVOKED = "sql_role.revoked"
    BUDGET_CHANGED = "budget.changed"

    JOB_CANCELLED = "job.cancelled"
    JOB_RETRIED = "job.retried"
    JOBS_RETRIED = "job.retried_many"
    JOBS_CANCELLED = "job.cancelled_many"
    RUN_CANCELLED = "run.cancelled"
    RUN_RETRIED = "run.retried"
    RUN_RESUMED = "run.resumed"
    RUN_DELETED = "run.deleted"
    COLLECTION_DELETED = "collection.deleted"
    DOCUMENT_DELETED = "document.deleted"

    WEBHOOK_CREATED = "webhook.created"
    WEBHOOK_CHANGED = "webhook.changed"
    WEBHOOK_ROTATED = "webhook.rotated"
    WEBHOOK_DISABLED = "webhook.disabled"
    WEBHOOK_DELETED = "webhook.deleted"

    FLAG_CHANGED = "flag.changed"
    FLAG_DELETED = "flag.deleted"
    SETTINGS_SEEN = "settings.seen"
    NOTIFICATION_SENT = "notification.requested"


class ObjectKind(StrEnum):
    """What it was done on."""

    USER = "user"
    KEY = "key"
    SESSION = "session"
    SQL_ROLE = "sql_role"
    """A role of the database that enqueues in SQL."""
    BUDGET = "budget"
    JOB = "job"
    RUN = "run"
    COLLECTION = "collection"
    DOCUMENT = "document"
    FLAG = "flag"
    PROCESS = "process"
    NOTIFICATION = "notification"
    WEBHOOK = "webhook"
    OPERATION = "operation"

    def of(self, name: UUID | str) -> "AuditObject":
        """The one with this id or name."""
        return AuditObject(self, str(name))


@dataclass(frozen=True)
class AuditObject:
    """One thing that something was done on."""

    kind: ObjectKind
    id: str
