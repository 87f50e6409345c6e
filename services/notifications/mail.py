"""A notification as the ledger keeps it, and the mail that becomes of it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from email.utils import parseaddr
from typing import Protocol
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class Notification(BaseModel):
    """What the ledger keeps of a notification, as the request of its job."""

    model_config = ConfigDict(frozen=True)

    user_id: UUID
    subject: str
    message: str
    event: str | None = None
    """Of a run; None for what an administrator has written."""
    message_id: str
    """The same each time that it is sent, so that servers and readers can drop a second copy."""
    written_at: datetime


@dataclass(frozen=True)
class Envelope:
    """A mail for one recipient."""

    sender: str
    recipient: str
    content: bytes
    needs_utf8: bool = False
    """Whether an address has letters that only servers with SMTPUTF8 take."""


class SendsMail(Protocol):
    """Hands mails to a mail server. `mailer.Mailer` does it by SMTP."""

    async def send(self, mail: Envelope, before_text: Callable[[], Awaitable[None]]) -> str:
        """Send a mail; what the server said when it accepted it."""


def make_message_id(notification_id: UUID, mail_from: str) -> str:
    """The Message-ID of a notification."""
    return f"<{notification_id}@{address_of(mail_from).rpartition('@')[2]}>"


def address_of(mail_from: str) -> str:
    """The address in `Name <address>`."""
    return parseaddr(mail_from)[1]
