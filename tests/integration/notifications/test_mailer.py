"""Mails over a real connection: safe, reused, and with each failure told apart."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from promptstack.config.errors import PromptStackError
from promptstack.config.smtp_url import SmtpUrl
from promptstack.services.circuit_breaker import CircuitBreaker
from promptstack.services.notifications.errors import (
    MailAcceptanceUnknown,
    MailPostponed,
    MailRefused,
    MailServerAway,
)
from promptstack.services.notifications.mail import Envelope
from promptstack.services.notifications.mailer import CONNECTIONS, Mailer
from tests.mail_server import PASSWORD, USER, MailServer, first, mail_server
from tests.tls import Authority

MAIL = Envelope("stack@example.org", "ada@example.org", b"Message-ID: <1@x>\r\n\r\n.dots\r\n")
OFF = "smtp://localhost:{port}?tls=off"


def with_mailer(
    server: MailServer,
    work: Callable[[Mailer], Coroutine[Any, Any, Any]],
    url: str = OFF,
    ca_file: Path | None = None,
    timeout: float = 20.0,
) -> Any:
    """Do it with a mailer, which is closed then."""

    async def run() -> Any:
        address = SmtpUrl.parse(url.format(port=server.port))
        mailer = Mailer(address, timeout_seconds=timeout, ca_file=str(ca_file) if ca_file else None)
        try:
            return await work(mailer)
        finally:
            await mailer.aclose()

    return asyncio.run(run())


async def nothing() -> None:
    """No note of it is taken."""


def send_one(server: MailServer, *how: Any, mail: Envelope = MAIL, **more: Any) -> Any:
    return with_mailer(server, lambda mailer: mailer.send(mail, nothing), *how, **more)


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


# What is said, and how safely


def test_a_mail_arrives_as_it_was_written() -> None:
    with mail_server() as server:
        assert send_one(server) == "250 OK"
    [mail] = server.accepted
    assert (mail.sender, mail.recipient, mail.content) == (*vars(MAIL).values(),)[:3]


@pytest.mark.filterwarnings("ignore:Requiring AUTH")  # the server doesn't count TLS of smtps
@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_a_login_is_sent_by_tls_alone(scheme: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = server_context(authority.certificate("localhost"))
    how: dict[str, Any] = {"starttls" if scheme == "smtp" else "tls": context}
    url = f"{scheme}://{USER}:pass%20word%25@localhost:{{port}}"
    with mail_server(asks_login=True, **how) as server:
        assert send_one(server, url, authority.file) == "250 OK"
        assert len(server.accepted) == 1
        with pytest.raises(MailServerAway, match=r"refuses the login in SMTP_URL \(535\)") as told:
            send_one(server, url.replace("word", "wrong"), authority.file)
    assert PASSWORD not in f"{told.value} {told.value.detail}"


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_a_certificate_of_a_stranger_is_refused(scheme: str, tmp_path: Path) -> None:
    ours, other = Authority(tmp_path), Authority(tmp_path, "other")
    context = server_context(other.certificate("localhost"))
    how: dict[str, Any] = {"starttls" if scheme == "smtp" else "tls": context}
    with (
        mail_server(**how) as server,
        pytest.raises(MailServerAway, match="certificate of the mail server localhost"),
    ):
        send_one(server, f"{scheme}://localhost:{{port}}", ours.file)
    assert server.mails == 0


def test_nothing_is_said_to_a_server_without_starttls() -> None:
    """Somebody on the line may have taken the offer out."""
    with mail_server() as server:
        with pytest.raises(MailServerAway, match="offers no STARTTLS"):
            send_one(server, "smtp://localhost:{port}")
        assert (server.mails, server.accepted) == (0, [])


# What is refused, and for how long


@pytest.mark.parametrize("where", ["on_rcpt", "on_data", "on_mail"])
def test_a_4xx_is_for_now(where: str) -> None:
    answers: Any = {where: first("451 Greylisted, try later")}
    with mail_server(**answers) as server:

        async def send_twice(mailer: Mailer) -> None:
            with pytest.raises(MailPostponed, match="451") as told:
                await mailer.send(MAIL, nothing)
            assert (told.value.reply_code, told.value.transient) == (451, True)
            assert "Greylisted" not in str(told.value), "its own words may quote the mail"
            assert "Greylisted" in str(told.value.detail)
            await mailer.send(MAIL, nothing)

        with_mailer(server, send_twice)
    assert len(server.accepted) == 1
    assert server.connections == 1, "the connection is as good as before"


@pytest.mark.parametrize("where", ["on_rcpt", "on_data"])
def test_a_5xx_is_for_good(where: str) -> None:
    answers: Any = {where: first("550 No such user")}
    with (
        mail_server(**answers) as server,
        pytest.raises(MailRefused, match="550") as told,
    ):
        send_one(server)
    assert (told.value.reply_code, told.value.transient) == (550, False)


def test_a_sender_that_is_refused_is_no_mails_fault() -> None:
    with (
        mail_server(on_mail=first("553 Not yours")) as server,
        pytest.raises(MailServerAway, match="MAIL_FROM") as told,
    ):
        send_one(server)
    assert told.value.is_wait


# What is cut off


@pytest.mark.parametrize("how", ["cut", "accept and cut", "hang"])
def test_a_mail_without_a_reply_may_have_been_accepted(how: str) -> None:
    noted = []

    async def note() -> None:
        noted.append(server.texts)

    with mail_server(on_data=first(how)) as server:

        async def send(mailer: Mailer) -> None:
            with pytest.raises(MailAcceptanceUnknown) as told:
                await mailer.send(MAIL, note)
            assert (told.value.transient, told.value.counts_as_failure) == (True, True)
            if how == "hang":
                with pytest.raises(MailServerAway, match="a moment ago"):
                    await mailer.send(MAIL, note)
                mailer._circuit = CircuitBreaker()
            assert await mailer.send(MAIL, note) == "250 OK"

        with_mailer(server, send, timeout=1.0 if how == "hang" else 20.0)
    assert noted == [0, 1], "each time before the text left"


@pytest.mark.parametrize("where", ["on_rcpt", "on_mail", "on_connection"])
def test_a_mail_whose_text_did_not_leave_was_not_accepted(where: str) -> None:
    answers: Any = {where: first("cut")}
    with (
        mail_server(**answers) as server,
        pytest.raises(MailServerAway) as told,
    ):
        send_one(server)
    assert told.value.is_wait
    assert server.texts == 0


def test_a_server_that_is_away_is_left_alone_for_a_moment() -> None:
    with mail_server() as server:
        pass  # it is gone now, and its port is free

    async def send_twice(mailer: Mailer) -> list[str]:
        said = []
        for _ in range(2):
            with pytest.raises(PromptStackError) as told:
                await mailer.send(MAIL, nothing)
            assert isinstance(told.value, MailServerAway)
            said.append(str(told.value))
        return said

    tried, left_alone = with_mailer(server, send_twice)
    assert "can't be reached" in tried
    assert "a moment ago" in left_alone


# Connections


def test_mails_share_connections() -> None:
    with mail_server() as server:

        async def send_many(mailer: Mailer) -> None:
            await asyncio.gather(*(mailer.send(MAIL, nothing) for _ in range(60)))

        with_mailer(server, send_many)
    assert len(server.accepted) == 60
    assert server.connections <= CONNECTIONS


def test_a_connection_that_was_closed_meanwhile_costs_no_mail() -> None:
    with mail_server() as server:

        async def send_after_a_while(mailer: Mailer) -> None:
            await mailer.send(MAIL, nothing)
            [idle] = mailer._idle
            assert idle.smtp.transport is not None
            # As a firewall closes it.
            idle.smtp.transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
            await mailer.send(MAIL, nothing)

        with_mailer(server, send_after_a_while)
    assert (len(server.accepted), server.connections) == (2, 2)


def test_who_waits_long_for_a_connection_waits_in_the_ledger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("promptstack.services.notifications.mailer.PATIENCE_SECONDS", 0.2)
    with mail_server(on_data=lambda _: "hang") as server:

        async def send_many(mailer: Mailer) -> list[Any]:
            sent = (mailer.send(MAIL, nothing) for _ in range(CONNECTIONS + 1))
            return await asyncio.gather(*sent, return_exceptions=True)

        came = with_mailer(server, send_many, timeout=2.0)
    assert [type(one) for one in came].count(MailAcceptanceUnknown) == CONNECTIONS
    [busy] = [one for one in came if isinstance(one, MailServerAway)]
    assert "in use" in str(busy)


# Addresses


def test_letters_beyond_ascii_need_a_server_that_takes_them() -> None:
    odd = Envelope("stack@example.org", "jos\u00e9@example.org", MAIL.content, needs_utf8=True)
    with mail_server() as server:
        assert send_one(server, mail=odd) == "250 OK"
    assert server.accepted[0].recipient == "jos\u00e9@example.org"
