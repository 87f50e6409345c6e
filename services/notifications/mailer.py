"""Hands mails to the mail server over SMTP. Imported where the first mail is sent."""

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPDataError,
    SMTPException,
    SMTPNotSupported,
    SMTPRecipientRefused,
    SMTPResponseException,
    SMTPSenderRefused,
)

from promptstack.config.smtp_url import SmtpUrl
from promptstack.services.circuit_breaker import CircuitBreaker
from promptstack.services.notifications.errors import (
    MailAcceptanceUnknown,
    MailPostponed,
    MailRefused,
    MailServerAway,
)
from promptstack.services.notifications.mail import Envelope

logger = logging.getLogger(__name__)

CONNECTIONS = 4
"""At once, of one worker. Mail servers allow few of one client."""
MAILS_A_CONNECTION = 100
IDLE_SECONDS = 15.0
"""After this long without a mail, a connection is not used again: the server may have closed it."""
PATIENCE_SECONDS = 3.0
"""Longest wait for a free connection: a job that waits longer does so in the ledger."""
CONNECT_SECONDS = 10.0
MAX_REPLY = 500
"""Characters of a server's reply that are kept."""

BeforeText = Callable[[], Awaitable[None]]
BROKEN = (SMTPException, OSError)
"""What a broken connection, a wait that was too long, or nonsense of the server is raised as."""


@dataclass
class _Connection:
    smtp: SMTP
    mails: int = 0
    used_at: float = 0.0


class Mailer:
    """The connections to one mail server. All of it runs on one event loop."""

    def __init__(
        self,
        server: SmtpUrl,
        *,
        timeout_seconds: float,
        ca_file: str | None,
        retry_seconds: float = 0.0,
    ) -> None:
        """Take how long a mail waits at least before it is sent again."""
        self._server = server
        self._retry_seconds = retry_seconds
        self._timeout = timeout_seconds
        self._tls = ssl.create_default_context(cafile=ca_file)
        self._places = asyncio.Semaphore(CONNECTIONS)
        self._idle: list[_Connection] = []
        self._circuit = CircuitBreaker()

    async def send(self, mail: Envelope, before_text: BeforeText) -> str:
        """Send a mail; what the server said when it accepted it.

        `before_text` runs right before the mail's text leaves: until then the server can't have
        accepted it. Raises `MailServerAway`, `MailPostponed`, `MailRefused`, and
        `MailAcceptanceUnknown` if no reply came to the text.
        """
        if self._circuit.is_open():
            raise MailServerAway("The mail server did not answer a moment ago.")
        try:
            await asyncio.wait_for(self._places.acquire(), PATIENCE_SECONDS)
        except TimeoutError:
            self._circuit.trip()  # else each mail would hold a job's slot for as long
            raise MailServerAway("All connections to the mail server are in use.") from None
        try:
            connection = await self._take()
            is_whole = False
            try:
                reply = await self._send(connection.smtp, mail, before_text)
                is_whole = True
            except MailPostponed as error:
                is_whole = True
                error.retry_after = self._retry_seconds
                raise
            except MailRefused:
                is_whole = True
                raise
            finally:
                self._put_back(connection, is_whole=is_whole)
        finally:
            self._places.release()
        return reply

    async def check(self) -> str:
        """Connect, log in and hang up; what the server is. Raises `MailServerAway`."""
        connection = _Connection(await self._connect())
        await self._quit(connection)
        how = "TLS" if self._server.is_tls or self._server.starts_tls else "without TLS"
        return f"{self._server.host}:{self._server.port}, {how}"

    async def aclose(self) -> None:
        """Close all connections."""
        while self._idle:
            await self._quit(self._idle.pop())

    async def _send(self, smtp: SMTP, mail: Envelope, before_text: BeforeText) -> str:
        await self._address(smtp, mail)
        await before_text()
        try:
            reply = await smtp.data(mail.content)
        except SMTPDataError as error:
            raise _refusal("mail", error) from error
        except BROKEN as error:
            self._note_silence(error)
            raise MailAcceptanceUnknown(
                "The mail was sent, and the mail server's reply did not come: it may have accepted "
                "it. It is sent again with the same Message-ID.",
                detail=type(error).__name__,
                retry_after=self._retry_seconds,
            ) from error
        return f"{reply.code} {reply.message}"[:MAX_REPLY]

    async def _address(self, smtp: SMTP, mail: Envelope) -> None:
        """Say from whom and to whom it is."""
        encoding, options = "ascii", []
        if mail.needs_utf8:
            await self._greet(smtp)
            if not smtp.supports_extension("smtputf8"):
                raise MailRefused(
                    "The user's e-mail address has letters that the mail server does not take "
                    "(SMTPUTF8)."
                )
            encoding, options = "utf-8", ["SMTPUTF8"]
        try:
            await smtp.mail(mail.sender, options=options, encoding=encoding)
            await smtp.rcpt(mail.recipient, encoding=encoding)
        except SMTPRecipientRefused as error:
            raise _refusal("recipient", error) from error
        except SMTPSenderRefused as error:
            if error.code < 500:
                raise _refusal("sender", error) from error
            # Every mail has this sender: an operator must change something.
            raise MailServerAway(
                f"The mail server refuses the sender in MAIL_FROM ({error.code}).",
                detail=_said(error),
            ) from error
        except BROKEN as error:
            raise self._closed(error) from error

    def _note_silence(self, error: Exception) -> None:
        """Leave a server alone for a moment that does not answer in time."""
        if isinstance(error, TimeoutError):
            self._circuit.trip()

    def _closed(self, error: Exception) -> MailServerAway:
        self._note_silence(error)
        return MailServerAway(f"The mail server closed the connection ({type(error).__name__}).")

    async def _greet(self, smtp: SMTP) -> None:
        """Ask what the server can do, if nobody has. Raises `MailServerAway`."""
        try:
            if smtp.is_ehlo_or_helo_needed:
                await smtp.ehlo()
        except BROKEN as error:
            raise self._closed(error) from error

    async def _take(self) -> _Connection:
        """A connection that answers. Raises `MailServerAway`."""
        while self._idle:
            connection = self._idle.pop()
            if time.monotonic() - connection.used_at > IDLE_SECONDS:
                await self._quit(connection)
                continue
            try:
                # Also ends what is left of a mail that was refused.
                await connection.smtp.rset()
            except BROKEN:
                connection.smtp.close()
            else:
                return connection
        return _Connection(await self._connect())

    async def _connect(self) -> SMTP:
        server = self._server
        smtp = SMTP(
            hostname=server.host,
            port=server.port,
            username=server.user or None,
            password=server.password or None,
            use_tls=server.is_tls,
            start_tls=server.starts_tls,
            tls_context=self._tls,
            timeout=min(self._timeout, CONNECT_SECONDS),
        )
        try:
            await smtp.connect()
        except BROKEN as error:
            if isinstance(error, SMTPConnectError) and not isinstance(error, SMTPResponseException):
                self._circuit.trip()
            raise MailServerAway(self._why_not(error), detail=_said(error)) from error
        smtp.timeout = self._timeout
        return smtp

    def _why_not(self, error: Exception) -> str:
        causes = (error, error.__cause__, error.__context__)
        place = f"{self._server.host}:{self._server.port}"
        if any(isinstance(cause, ssl.SSLError) for cause in causes):
            return (
                f"The certificate of the mail server {place} is not trusted, or it speaks no TLS "
                "there; check SMTP_URL and TLS_CA_FILE."
            )
        if isinstance(error, SMTPAuthenticationError):
            return f"The mail server refuses the login in SMTP_URL ({error.code})."
        # The library has no class of its own for a server without STARTTLS.
        if isinstance(error, SMTPNotSupported) or type(error) is SMTPException:
            return (
                f"The mail server {place} offers no STARTTLS, or no login; see SMTP_URL in "
                "docs/notifications.md."
            )
        return f"The mail server {place} can't be reached ({type(error).__name__})."

    def _put_back(self, connection: _Connection, *, is_whole: bool) -> None:
        """Keep a connection for the next mail, if it may be used again."""
        connection.mails += 1
        connection.used_at = time.monotonic()
        if is_whole and connection.smtp.is_connected and connection.mails < MAILS_A_CONNECTION:
            self._idle.append(connection)
        else:
            connection.smtp.close()

    async def _quit(self, connection: _Connection) -> None:
        with suppress(*BROKEN):
            await connection.smtp.quit(timeout=1.0)
        connection.smtp.close()


def _refusal(what: str, error: SMTPResponseException) -> MailPostponed | MailRefused:
    """What a reply of 4xx or 5xx means for this mail."""
    if 400 <= error.code < 500:
        return MailPostponed(
            f"The mail server does not take this {what} now ({error.code}); it is asked again.",
            detail=_said(error),
            reply_code=error.code,
        )
    return MailRefused(
        f"The mail server refuses this {what} ({error.code}).",
        detail=_said(error),
        reply_code=error.code,
    )


def _said(error: Exception) -> str:
    """The server's own words: for the ledger alone, as they may quote the mail."""
    return str(getattr(error, "message", "") or type(error).__name__)[:MAX_REPLY]
