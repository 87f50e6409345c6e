"""A mail server that keeps what it accepts, and that refuses, delays and drops on demand."""

import asyncio
import email
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

from tests.processes import PATIENCE, join

USER, PASSWORD = "stack", "pass word%"


@dataclass
class Accepted:
    """A mail that the server has taken over."""

    sender: str
    recipient: str
    content: bytes
    is_heard: bool
    """Whether its sender was told so."""

    @property
    def mail(self) -> EmailMessage:
        found = email.message_from_bytes(self.content, policy=policy.default)
        assert isinstance(found, EmailMessage)
        return found

    @property
    def message_id(self) -> str:
        return str(self.mail["Message-ID"])


@dataclass
class MailServer:
    """The handler of `aiosmtpd`, and what tests see of it.

    The answers are tried in order, by the number of the command, from 1: a reply, or `cut` to drop
    the connection, `accept and cut` to take the mail first, and `hang` to say nothing.
    """

    on_data: Callable[[int], str | None] = lambda _: None
    on_rcpt: Callable[[int], str | None] = lambda _: None
    on_mail: Callable[[int], str | None] = lambda _: None
    on_connection: Callable[[int], str | None] = lambda _: None
    on_login: Callable[[int], str | None] = lambda _: None
    password: str = PASSWORD
    """Of the user `stack`."""
    seconds: float = 0.0
    """How long it takes over a text, before it accepts it and again before it says so."""
    asked: str = ""
    """The last recipient."""
    accepted: list[Accepted] = field(default_factory=list)
    connections: int = 0
    logins: int = 0
    mails: int = 0
    recipients: int = 0
    texts: int = 0
    port: int = 0

    async def handle_MAIL(  # noqa: N802 - the name that aiosmtpd calls
        self, server: SMTP, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        self.mails += 1
        envelope.mail_from = address
        return await self._answer(self.on_mail(self.mails), server)

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        self.recipients += 1
        self.asked = address
        answer = await self._answer(self.on_rcpt(self.recipients), server)
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:  # noqa: N802
        self.texts += 1
        said = self.on_data(self.texts)
        await asyncio.sleep(self.seconds)
        if said in {None, "accept and cut"}:
            [recipient] = envelope.rcpt_tos
            taken = Accepted(envelope.mail_from, recipient, envelope.content, is_heard=said is None)
            self.accepted.append(taken)
        await asyncio.sleep(self.seconds)
        return await self._answer(said, server)

    def authenticate(
        self, server: SMTP, session: Any, envelope: Any, mechanism: str, login: Any
    ) -> AuthResult:
        """Check a login."""
        self.logins += 1
        if refusal := self.on_login(self.logins):
            return AuthResult(success=False, handled=False, message=refusal)
        said = isinstance(login, LoginPassword) and (login.login, login.password)
        is_right = said == (USER.encode(), self.password.encode())
        return AuthResult(success=is_right, handled=False)

    async def _answer(self, said: str | None, server: SMTP) -> str:
        match said:
            case None:
                return "250 OK"
            case "cut" | "accept and cut":
                transport: Any = server.transport
                transport.abort()
                return "250 OK"
            case "hang":
                await asyncio.sleep(60)
                return "250 OK"
            case reply:
                return reply

    @property
    def ids(self) -> list[str]:
        """The Message-IDs of the mails that it has accepted."""
        return [one.message_id for one in self.accepted]


class _Protocol(SMTP):
    def connection_made(self, transport: Any) -> None:
        handler: MailServer = self.event_handler
        handler.connections += 1
        super().connection_made(transport)
        if handler.on_connection(handler.connections) == "cut":
            asyncio.get_running_loop().call_soon(transport.abort)


@contextmanager
def mail_server(
    *,
    starttls: ssl.SSLContext | None = None,
    tls: ssl.SSLContext | None = None,
    asks_login: bool = False,
    **answers: Any,
) -> Iterator[MailServer]:
    """Serve on a free port of this machine until the context ends."""
    handler = MailServer(**answers)
    more: dict[str, Any] = {}
    if asks_login:
        more = {"authenticator": handler.authenticate, "auth_required": True}
        more["auth_require_tls"] = tls is None
    loop = asyncio.new_event_loop()

    def protocol() -> SMTP:
        return _Protocol(
            handler, hostname="localhost", tls_context=starttls, enable_SMTPUTF8=True, **more
        )

    async def serve() -> asyncio.Server:
        return await loop.create_server(protocol, "localhost", 0, ssl=tls, family=socket.AF_INET)

    async def stop() -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever, name="mail-server")
    thread.start()
    try:
        server = asyncio.run_coroutine_threadsafe(serve(), loop).result(PATIENCE)
        handler.port = server.sockets[0].getsockname()[1]
        try:
            yield handler
        finally:
            asyncio.run_coroutine_threadsafe(stop(), loop).result(PATIENCE)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        join(thread)
        loop.close()


def every(number: int, said: str) -> Callable[[int], str | None]:
    """Say it each so many times."""
    return lambda count: said if count % number == 0 else None


def first(*said: str | None) -> Callable[[int], str | None]:
    """Say these first, and nothing wrong after."""
    return lambda count: said[count - 1] if count <= len(said) else None
