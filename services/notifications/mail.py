"""One mail, as it goes to the mail server: the same bytes each time that it is sent."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from email import policy
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from typing import Protocol
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from promptstack.services.notifications.errors import MailRefused


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


def compose(notification: Notification, mail_from: str, recipient: str, name: str) -> Envelope:
    """Write the mail. Raises `MailRefused` if it can't be addressed."""
    to = _ascii_domain(recipient)
    mail = EmailMessage(policy.SMTP)
    mail["From"] = mail_from
    try:
        mail["To"] = Address(display_name=name, addr_spec=to)
    except (ValueError, IndexError, HeaderParseError) as error:
        raise MailRefused("The user's e-mail address can't be written on a mail.") from error
    mail["Subject"] = notification.subject
    mail["Date"] = format_datetime(notification.written_at)
    mail["Message-ID"] = notification.message_id
    # So that nobody's absence is told to us.
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(notification.message)
    if to.isascii():
        return Envelope(address_of(mail_from), to, mail.as_bytes(policy=_PLAIN))
    return Envelope(address_of(mail_from), to, mail.as_bytes(policy=_UTF8), needs_utf8=True)


_PLAIN = policy.SMTP.clone(cte_type="7bit")
_UTF8 = policy.SMTPUTF8.clone(cte_type="7bit")


def _ascii_domain(address: str) -> str:
    """Write the domain as every server takes it."""
    local, at, domain = address.rpartition("@")
    try:
        return f"{local}{at}{domain.encode('idna').decode()}"
    except UnicodeError as error:
        raise MailRefused("The domain of the user's e-mail address is none.") from error
