"""Notifications as mails: any text arrives, and none adds a header or a recipient."""

import email
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptstack.config.control_characters import CONTROLS
from promptstack.services.notifications.compose import compose
from promptstack.services.notifications.errors import MailRefused
from promptstack.services.notifications.mail import Envelope, Notification, make_message_id

FROM = "Prompt Stack <stack@example.org>"
TEXT = st.text(st.characters(exclude_characters="\x00\r", exclude_categories=["Cs"]), max_size=300)
LINE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=80).filter(
    lambda line: CONTROLS.search(line) is None
)
HEADERS = {
    "from", "to", "subject", "date", "message-id", "auto-submitted", "mime-version",
    "content-type", "content-transfer-encoding",
}  # fmt: skip


def notification(subject: str = "News", message: str = "Hello.\n") -> Notification:
    return Notification(
        user_id=UUID(int=1),
        subject=subject,
        message=message,
        message_id=make_message_id(UUID(int=2), FROM),
        written_at=datetime(2026, 11, 30, 12, tzinfo=UTC),
    )


def read(envelope: Envelope) -> EmailMessage:
    found = email.message_from_bytes(envelope.content, policy=policy.default)
    assert isinstance(found, EmailMessage)
    return found


@given(subject=LINE, message=TEXT, name=LINE)
def test_any_text_arrives_and_adds_no_header(subject: str, message: str, name: str) -> None:
    envelope = compose(notification(subject, message), FROM, "ada@example.org", name)
    assert envelope.content.isascii()
    assert max(map(len, envelope.content.split(b"\r\n"))) <= 998
    mail = read(envelope)
    assert {header.lower() for header in mail} == HEADERS
    # Spaces at the folds of a long header are those that a reader puts in.
    assert mail["Subject"].split() == subject.split()
    assert [address.addr_spec for address in mail["To"].addresses] == ["ada@example.org"]
    # A mail's last line has an end.
    assert mail.get_content().replace("\r\n", "\n") == (
        message if message[-1:] == "\n" else message + "\n"
    )


def test_each_copy_is_the_same_to_the_byte() -> None:
    copies = {
        compose(
            notification("Gr\u00fc\u00dfe", "\u5317\u4eac\n" * 500), FROM, "a@b.org", "J\u00f6"
        ).content
        for _ in range(3)
    }
    assert len(copies) == 1


@pytest.mark.parametrize(
    ("address", "written", "needs_utf8"),
    [
        ("ada@b\u00fccher.example", "ada@xn--bcher-kva.example", False),
        ("jos\u00e9@example.org", "jos\u00e9@example.org", True),
    ],
)
def test_addresses_in_any_language(address: str, written: str, needs_utf8: bool) -> None:
    envelope = compose(notification(), FROM, address, "")
    assert (envelope.recipient, envelope.needs_utf8) == (written, needs_utf8)
    assert envelope.sender == "stack@example.org"


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("a b@example.org", ""),
        ("a@x, eve@example.org", ""),
        ("a@x>\r\nBcc: eve@example.org", ""),
        ("ada@example.org", "Ada\r\nBcc: eve@example.org"),
        (f"ada@{'x' * 64}.org", ""),
        ("ada@x..org", ""),
    ],
)
def test_what_can_not_be_addressed_is_refused(address: str, name: str) -> None:
    with pytest.raises(MailRefused):
        compose(notification(), FROM, address, name)
