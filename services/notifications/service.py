"""Notifications as their senders use them: accepted at once, and sent by a worker."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from promptstack.config.names import Queue
from promptstack.repositories.access_models import User
from promptstack.repositories.jobs.records import NewJobRow
from promptstack.repositories.models import Job, JobKind, JobState, new_id
from promptstack.repositories.pages import Page, PageQuery
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.log import AuditLog
from promptstack.services.errors import (
    IdempotencyConflict,
    InvalidInput,
    NotFound,
    NotYet,
    WrongState,
)
from promptstack.services.jobs.publishing import JobMessage, Publisher, publish_now
from promptstack.services.notifications.errors import MailNotConfigured
from promptstack.services.notifications.events import NotifyEvent
from promptstack.services.notifications.mail import Notification, make_message_id
from promptstack.services.text import check_name, check_storable
from promptstack.services.validation.ids import read_id
from promptstack.services.validation.paging import asked_page

PROVIDER, MODEL = "smtp", "mail"
"""What stands in the row of its job, and in monitors, where others have a provider and a model."""
MAX_SUBJECT = 200
MAX_MESSAGE = 20_000
"""Characters. A mail is a notice, and no document."""
MAX_KEY = 200
RETRIES = 5
"""Times that a mail is sent again after its reply did not come, or its worker died: its reader may
get so many more. What the mail server refuses for now is tried again until the deadline."""


@dataclass(frozen=True)
class MailDefaults:
    """How this deployment sends mail."""

    mail_from: str
    lifetime: float
    """Seconds for which a mail is tried."""


class NotificationView(BaseModel):
    """A notification, without its text."""

    model_config = ConfigDict(from_attributes=True, frozen=True)

    id: UUID
    state: JobState
    user_id: UUID
    recipient: str | None
    """The address that it was last sent to."""
    event: str | None
    subject: str
    message_id: str
    attempt: int
    accepted: int
    """Times that the mail server has accepted it."""
    uncertain: int
    """Times that it may have accepted it, and its reply did not come."""
    error_code: str | None
    error: str | None
    not_before: datetime | None
    created_at: datetime
    finished_at: datetime | None


class NotificationService:
    """Accepts notifications, and tells what became of them."""

    def __init__(self, ledger: Ledger, publisher: Publisher, defaults: MailDefaults | None) -> None:
        """Without `defaults`, this deployment has no mail server."""
        self._ledger = ledger
        self._defaults = defaults
        # Made once: notifications of one transaction are published together.
        self._publish = partial(publish_now, ledger, publisher)

    @property
    def is_on(self) -> bool:
        """Whether this deployment sends mail."""
        return self._defaults is not None

    def send(
        self,
        user_id: UUID | str,
        subject: str,
        message: str,
        *,
        actor: Actor,
        idempotency_key: str | None = None,
    ) -> UUID:
        """Accept a mail to a user; the notification's id. It is in the ledger then.

        The same key with the same mail, from the same sender, is the notification that is there.
        Raises `MailNotConfigured`, `InvalidInput`, `NotFound`, `WrongState` for a disabled user,
        and `IdempotencyConflict`.
        """
        self._check_on()
        user_id = read_id(user_id, "user")
        _check_content(subject, message, idempotency_key)
        key = idempotency_key and f"notification:{actor.user_id}:{idempotency_key}"
        with self._ledger.transaction() as unit:
            user = _user(unit, user_id)
            if user.disabled_at is not None:
                raise WrongState(f"The user {user_id} is disabled, and gets no mail.")
            notification_id, is_new = self.add(unit, user_id, subject, message, key=key)
            if is_new:
                AuditLog.record(
                    unit,
                    actor=actor,
                    action=Action.NOTIFICATION_SENT,
                    object=ObjectKind.NOTIFICATION.of(notification_id),
                    detail={"to_user_id": user_id},
                )
        return notification_id

    def add(
        self,
        unit: UnitOfWork,
        user_id: UUID,
        subject: str,
        message: str,
        *,
        key: str | None = None,
        event: str | None = None,
    ) -> tuple[UUID, bool]:
        """Add a notification in the caller's transaction; its id, and whether it is new.

        Of an `event`, a mail of the same key is the same mail. Raises `MailNotConfigured` and
        `IdempotencyConflict`.
        """
        defaults = self._check_on()
        notification_id = new_id()
        notification = Notification(
            user_id=user_id,
            subject=subject,
            message=message,
            event=event,
            message_id=make_message_id(notification_id, defaults.mail_from),
            written_at=unit.now(),
        )
        row = NewJobRow(
            id=notification_id,
            kind=JobKind.NOTIFICATION,
            queue=Queue.MAINTENANCE,
            provider=PROVIDER,
            model=MODEL,
            request=notification.model_dump_json(),
            request_hash=_hash(user_id, subject, message),
            user_id=None,
            api_key_id=None,
            idempotency_key=key,
            max_retries=RETRIES,
            webhook=None,
            lifetime=defaults.lifetime,
        )
        added = unit.new_jobs.add([row])
        if not added:
            return notification_id if event else _same(unit, row).id, False
        created_at = added[notification_id].created_at
        unit.after_commit(
            self._publish,
            JobMessage(row.id, row.kind, row.queue, PROVIDER, MODEL, 0, created_at),
        )
        return notification_id, True

    def get_many(
        self,
        *,
        state: JobState | None = None,
        is_uncertain: bool = False,
        after: UUID | str | None = None,
        limit: int = 50,
    ) -> list[NotificationView]:
        """Read notifications, newest first. `after` is the last id of the page before."""
        asked = asked_page("notification", limit=limit, after=after)
        return self.get_page(asked, state=state, is_uncertain=is_uncertain).rows

    def get_page(
        self, asked: PageQuery, *, state: JobState | None = None, is_uncertain: bool = False
    ) -> Page[NotificationView]:
        """Read a page of notifications, newest first.

        With `is_uncertain`, those that the mail server may have accepted without our hearing it.
        """
        with self._ledger.transaction() as unit:
            found = unit.deliveries.notifications(asked, state=state, is_uncertain=is_uncertain)
        return found.of(NotificationView.model_validate)

    def get_events(self, user_id: UUID | str) -> list[str]:
        """The events that a user is told by mail. Raises `NotFound`."""
        with self._ledger.transaction() as unit:
            return list(_user(unit, read_id(user_id, "user")).notify)

    def choose_events(
        self, user_id: UUID | str, events: Iterable[str], *, actor: Actor
    ) -> list[str]:
        """Set the events that a user is told by mail. Raises `InvalidInput` and `NotFound`."""
        chosen = _read_events(events)
        with self._ledger.transaction() as unit:
            user = _user(unit, read_id(user_id, "user"))
            before = list(user.notify)
            unit.users.update(user, notify=chosen)
            if before != chosen and actor.user_id != user.id:
                AuditLog.record(
                    unit,
                    actor=actor,
                    action=Action.USER_CHANGED,
                    object=ObjectKind.USER.of(user.id),
                    detail={"changed": ["notify"], "before": before, "after": chosen},
                )
        return chosen

    def _check_on(self) -> MailDefaults:
        if self._defaults is None:
            raise MailNotConfigured(
                "This deployment sends no mail: an operator must set SMTP_URL and MAIL_FROM."
            )
        return self._defaults


def _user(unit: UnitOfWork, user_id: UUID) -> User:
    user = unit.users.get(user_id)
    if user is None:
        raise NotFound(f"There is no user {user_id}.")
    return user


def _read_events(events: Iterable[str]) -> list[str]:
    wanted = set(events)
    if not wanted <= set(NotifyEvent):
        raise InvalidInput(f"The events are {', '.join(NotifyEvent)}; choose some or none.")
    return sorted(str(event) for event in wanted)


def _check_content(subject: str, message: str, key: str | None) -> None:
    """Raise `InvalidInput` for what no mail may have."""
    check_name(subject, "The subject")
    check_storable(message, "The message")
    if not subject.strip() or not message.strip():
        raise InvalidInput("A mail needs a subject and a message.")
    if len(subject) > MAX_SUBJECT:
        raise InvalidInput(f"The subject has at most {MAX_SUBJECT} characters.")
    if len(message) > MAX_MESSAGE:
        raise InvalidInput(f"The message has at most {MAX_MESSAGE:,} characters; send a link.")
    if key is not None:
        check_name(key, "The idempotency key")
        if not 0 < len(key) <= MAX_KEY:
            raise InvalidInput(f"The idempotency key has 1 to {MAX_KEY} characters.")


def _same(unit: UnitOfWork, row: NewJobRow) -> Job:
    """The notification that has the key of this one. Raises `IdempotencyConflict`."""
    found = unit.jobs.find_by_idempotency_keys(None, [str(row.idempotency_key)])
    if not found:
        raise NotYet("A notification of the same idempotency key was deleted just now; try again.")
    if found[0].request_hash != row.request_hash:
        raise IdempotencyConflict(
            f"The idempotency key was used for another mail (notification {found[0].id}); send a "
            "new key for a new mail."
        )
    return found[0]


def _hash(user_id: UUID, subject: str, message: str) -> str:
    given = json.dumps(["notification", str(user_id), subject, message])
    return hashlib.sha256(given.encode()).hexdigest()
