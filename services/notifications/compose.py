"""Writes a notification as a mail: the same bytes each time that it is sent."""

import re
from email import policy
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime

from promptstack.services.access.emails import host_in_ascii
from promptstack.services.notifications.errors import MailRefused
from promptstack.services.notifications.mail import Envelope, Notification, address_of


def compose(notification: Notification, mail_from: str, recipient: str, name: str) -> Envelope:
    """Write the mail. Raises `MailRefused` if it can't be addressed."""
    to = _ascii_domain(recipient)
    mail = EmailMessage(policy.SMTP)
    mail["From"] = mail_from
    try:
        # The parser refuses letters beyond ASCII; it checks the rest without them.
        Address(addr_spec=_NOT_ASCII.sub("x", to))
        local, _, domain = to.rpartition("@")
        mail["To"] = Address(name, local, domain)
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


_NOT_ASCII = re.compile("[^\x00-\x7f]")
_PLAIN = policy.SMTP.clone(cte_type="7bit")
_UTF8 = policy.SMTPUTF8.clone(cte_type="7bit")


def _ascii_domain(address: str) -> str:
    """Write the domain as every server takes it."""
    local, at, domain = address.rpartition("@")
    try:
        return f"{local}{at}{host_in_ascii(domain)}"
    except UnicodeError as error:
        raise MailRefused("The domain of the user's e-mail address is none.") from error
