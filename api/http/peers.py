"""Who is at the other end of a connection: the sender of a request, or a proxy for it."""

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from fastapi import Request

from promptstack.tasks.composition import PromptStack

SCHEMES = ("http", "https")
HOST = re.compile(r"[\w.-]+(:\d+)?|\[[\da-fA-F:.]+\](:\d+)?", re.ASCII)


def address_of(request: Request) -> str:
    """Where a request came from; empty where the server can't tell.

    A trusted proxy's X-Forwarded-For is believed as far as trusted proxies wrote it: from its end.
    """
    peer = _peer(request)
    if peer is None:
        return request.client.host if request.client else ""
    hops = [
        hop.strip()
        for header in request.headers.getlist("X-Forwarded-For")
        for hop in header.split(",")
    ]
    while hops and _is_trusted(request, peer):
        before = _read(hops.pop())
        if before is None:
            break
        peer = before
    return str(peer)


def comes_from_trusted_proxy(request: Request) -> bool:
    """Whether the connection is that of a trusted proxy."""
    peer = _peer(request)
    return peer is not None and _is_trusted(request, peer)


def origin_of(request: Request) -> str:
    """The address of this server as the sender knows it, such as `https://api.example.org`.

    A trusted proxy's X-Forwarded-Proto and X-Forwarded-Host are believed.
    """
    scheme, host = request.url.scheme, request.url.netloc
    if comes_from_trusted_proxy(request):
        given = request.headers.get("X-Forwarded-Proto", "").rpartition(",")[2].strip().lower()
        scheme = given if given in SCHEMES else scheme
        given = request.headers.get("X-Forwarded-Host", "").rpartition(",")[2].strip()
        host = given if HOST.fullmatch(given) else host
    return f"{scheme}://{host}"


def _peer(request: Request) -> IPv4Address | IPv6Address | None:
    return _read(request.client.host) if request.client else None


def _is_trusted(request: Request, address: IPv4Address | IPv6Address) -> bool:
    stack: PromptStack = request.app.state.stack
    return any(address in network for network in stack.settings.trusted_proxies)


@lru_cache(maxsize=1_000)
def _read(address: str) -> IPv4Address | IPv6Address | None:
    try:
        read = ip_address(address)
    except ValueError:
        return None
    mapped = read.ipv4_mapped if isinstance(read, IPv6Address) else None
    return mapped or read
