"""Sends events to their receivers over HTTP."""

import asyncio
import ssl
import time
from collections.abc import Mapping
from uuid import UUID

import aiohttp
from yarl import URL

from promptstack.config.errors import PromptStackError
from promptstack.services.validation.webhook_urls import WebhookRules
from promptstack.services.webhooks.answers import GONE, Answer
from promptstack.services.webhooks.errors import NamesBusy
from promptstack.services.webhooks.guard import GuardedResolver
from promptstack.services.webhooks.names import LookUp, asking_user

MAX_ANSWER = 16_384
"""Bytes of an answer's body that are read, so that its connection can be used again. Nobody looks
at them."""
BODY_SECONDS = 1.0
"""The longest wait for them: the status says all."""
MAX_RETRY_AFTER = 86_400.0


class Receivers:
    """An HTTP client for the addresses of strangers. Lives on one event loop.

    It follows no redirects, keeps no cookies and uses no proxies, which would look up names
    themselves.
    """

    def __init__(
        self,
        rules: WebhookRules,
        *,
        timeout_seconds: float,
        ca_file: str | None = None,
        look_up: LookUp | None = None,
    ) -> None:
        """Take `ca_file`, certificate authorities that are trusted beside those of the machine."""
        self._rules = rules
        self._timeout = timeout_seconds
        self._ca_file = ca_file
        self._look_up = look_up
        self._opened: aiohttp.ClientSession | None = None
        self._resolver: GuardedResolver | None = None

    async def post(
        self, url: str, body: str, headers: Mapping[str, str], user_id: UUID | None = None
    ) -> Answer:
        """Send a body for a user. Never raises for what a receiver does; raises `NamesBusy`."""
        asking_user.set(user_id)
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                return await self._post(url, body, headers, began)
        except TimeoutError:
            error = f"No answer came within {self._timeout:g} s."
        except NamesBusy:
            raise
        except (PromptStackError, aiohttp.ClientError, OSError, ValueError) as raised:
            error = _explained(raised)
        return Answer(None, error, _since(began))

    async def _post(self, url: str, body: str, headers: Mapping[str, str], began: float) -> Answer:
        # What was allowed when the address was given may not be any more.
        address = URL(self._rules.check(url))
        session, resolver = self._session()
        if address.host and aiohttp.helpers.is_ip_address(address.host):
            # aiohttp asks no resolver for an address.
            resolver.check(address.host, [address.host])
        async with session.post(
            address, data=body.encode(), headers=headers, allow_redirects=False
        ) as response:
            answer = Answer(
                response.status,
                _refusal(response.status),
                _since(began),
                _retry_after(response.headers.get("Retry-After", "")),
            )
            await _finish(response)
        return answer

    def _session(self) -> tuple[aiohttp.ClientSession, GuardedResolver]:
        if self._opened is None or self._resolver is None:
            # Shorter than the time for an answer, which the receiver has to have as well.
            wait = self._timeout / 4
            self._resolver = GuardedResolver(self._rules, self._look_up, wait_seconds=wait)
            tls = ssl.create_default_context()
            if self._ca_file is not None:
                tls.load_verify_locations(self._ca_file)
            self._opened = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=self._resolver, use_dns_cache=False, ssl=tls, limit=0
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                trust_env=False,
                headers={
                    "Content-Type": "application/json",
                    "User-Agent": "PromptStack-Webhooks/1",
                },
            )
        return self._opened, self._resolver

    async def aclose(self) -> None:
        """Close all connections."""
        if self._opened is not None:
            await self._opened.close()
        if self._resolver is not None:
            await self._resolver.close()


def _explained(error: Exception) -> str:
    """Why there was no answer, without the address, which may hold a token."""
    match error:
        case PromptStackError():
            return str(error)
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return "The receiver's certificate is not valid for its name, or TLS failed."
        case aiohttp.ClientConnectorDNSError():
            return "The receiver's name was not found."
        case aiohttp.ClientConnectorError():
            return f"There was no connection to the receiver: {error.strerror or 'refused'}."
        case _:
            return f"There was no answer that could be read ({type(error).__name__})."


async def _finish(response: aiohttp.ClientResponse) -> None:
    """Read what is left of a short answer; the connection of any other is closed."""
    left = MAX_ANSWER
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while left > 0 and (part := await response.content.readany()):
                left -= len(part)
    except (TimeoutError, aiohttp.ClientError):
        left = 0
    if left <= 0:
        response.close()


def _refusal(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"The receiver answered {status}; redirects are not followed: give the new address."
    if status == GONE:
        return "The receiver answered 410: it wants no more events."
    return f"The receiver answered {status}."


def _retry_after(said: str) -> float | None:
    return min(float(said), MAX_RETRY_AFTER) if said.isascii() and said.isdigit() else None


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
