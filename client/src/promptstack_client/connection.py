"""Translates errors of the HTTP library."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

from promptstack_client.errors import ConnectionFailed, TimedOut, UnexpectedAnswer

_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raise errors of the HTTP library as the client's own."""
    try:
        yield
    except (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, httpx2.InvalidURL):
        raise  # a mistake in the program that uses the client, or in the client
    except httpx2.SSEError as error:
        raise UnexpectedAnswer(f"{url} answered no events: {error}") from error
    except httpx2.TransportError as error:
        kind = TimedOut if isinstance(error, httpx2.TimeoutException) else ConnectionFailed
        reason = str(error) or type(error).__name__
        raise kind(f"{url}: {reason}", was_sent=not isinstance(error, _NEVER_SENT)) from error
    except (httpx2.DecodingError, httpx2.TooManyRedirects) as error:
        raise UnexpectedAnswer(f"{url}: {error}") from error
