"""The addresses that events may be sent to, as far as an address itself tells.

What its name leads to is checked when something is sent (`services/webhooks/guard.py`).
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

import idna
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from promptstack.services.errors import InvalidInput
from promptstack.services.validation.bounds import Line

MAX_URL = 2_000
"""Characters."""
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_NOT_PUBLIC = (
    "must not lead into a private network: this address is {why}. An operator can allow a host by "
    "WEBHOOK_ALLOWED_HOSTS"
)
_EMBEDDING = tuple(
    ipaddress.IPv6Network(one) for one in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")
)
"""NAT64 and 6to4: addresses in which one of IPv4 hides."""
_RESERVED_V4 = ipaddress.IPv4Network("192.88.99.0/24")
"""Relays of 6to4, which are gone."""
_RESERVED_V6 = (ipaddress.IPv6Network("fec0::/10"), ipaddress.IPv6Network("::/96"))
"""Site-local, and IPv4-compatible."""


def _shaped(url: str) -> str:
    if len(url) > MAX_URL:
        raise ValueError(f"has more than {MAX_URL:,} characters")
    parts = split(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be an address such as https://example.org/hooks")
    if parts.port == 0:
        raise ValueError("must have a port from 1 to 65,535, or none")
    if "@" in parts.netloc or "\\" in url or "%" in parts.netloc:
        raise ValueError("must name a host and nothing else before its path: no user, no password")
    if any(character.isspace() for character in url):
        raise ValueError("must have no spaces")
    return url


WebhookUrl = Annotated[
    Line,
    Field(max_length=MAX_URL, json_schema_extra={"format": "uri"}),
    AfterValidator(_shaped),
]
"""An HTTP address without a user's name in it."""


class Webhook(BaseModel):
    """Where the end of one job or run is told to, beside its user's endpoints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: WebhookUrl = Field(
        description="A public https:// address. What is sent there is signed with your own "
        "secret, which `POST /webhooks/secret` makes.",
        examples=["https://example.org/hooks"],
    )


def _of_text(given: object) -> object:
    return {"url": given} if isinstance(given, str) else given


GivenWebhook = Annotated[Webhook, BeforeValidator(_of_text)]
"""A webhook as Python gives it: its address alone will do."""


def split(url: str) -> SplitResult:
    """The parts of an address. Raises `ValueError` where it has none."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("must be an address such as https://example.org/hooks") from None
    return parts


def why_not_public(address: IpAddress) -> str | None:
    """What an address is that is not on the public internet; None for one that is."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped
        if inner is None and any(address in network for network in _EMBEDDING):
            return "one that hides another"
        if any(address in network for network in _RESERVED_V6) and not _is_plain(address):
            return "reserved"
        if inner is not None:
            return why_not_public(inner)
    elif address in _RESERVED_V4:
        return "reserved"
    for name in ("loopback", "link_local", "multicast", "unspecified"):
        if getattr(address, f"is_{name}"):
            return name.replace("_", "-")
    # CGNAT (100.64.0.0/10), unique-local and documentation addresses are private or not global.
    return None if address.is_global and not address.is_reserved else "private or reserved"


def _is_plain(address: ipaddress.IPv6Address) -> bool:
    return address.is_loopback or address.is_unspecified


@dataclass(frozen=True)
class WebhookRules:
    """Which addresses this deployment sends events to."""

    allow_http: bool = False
    allowed_hosts: frozenset[str] = field(default_factory=frozenset)
    """Hosts that may be private, and may be asked without TLS."""

    @classmethod
    def of(cls, *, allow_http: bool, allowed_hosts: Iterable[str]) -> "WebhookRules":
        """The rules that the settings say."""
        return cls(allow_http, frozenset(host.lower().rstrip(".") for host in allowed_hosts))

    def allows(self, host: str) -> bool:
        """Whether an operator allows this host by its name, wherever it leads."""
        return host.lower().rstrip(".") in self.allowed_hosts

    def check(self, url: str) -> str:
        """Raise `InvalidInput` for an address that nothing is sent to, whoever asks."""
        try:
            self._check(split(_shaped(url)))
        except ValueError as error:
            raise InvalidInput(f"The webhook's url {error}.") from None
        return url

    def _check(self, parts: SplitResult) -> None:
        host = parts.hostname or ""
        if self.allows(host):
            return
        if parts.scheme != "https" and not self.allow_http:
            raise ValueError("must begin with https://")
        literal = _literal(host)
        if literal is not None:
            why = why_not_public(literal)
            if why is not None:
                raise ValueError(_NOT_PUBLIC.format(why=why))
            return
        _check_name(host)


def _literal(host: str) -> IpAddress | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _check_name(host: str) -> None:
    """Raise `ValueError` for what is no name of a host.

    Resolvers read `2130706433`, `0x7f.1` and `0177.0.0.1` as addresses. No name of the internet
    ends in a number.
    """
    try:
        name = idna.encode(host, uts46=True).decode()
    except (idna.IDNAError, UnicodeError):
        raise ValueError("must have the name of a host that there can be") from None
    labels = name.rstrip(".").split(".")
    last = labels[-1]
    if last.isdigit() or last.startswith("0x") or len(labels) < 2:
        raise ValueError("must have the full name of a host, such as example.org, or its address")
    if last in {"localhost", "local", "internal", "localdomain"} or last == "arpa":
        raise ValueError(_NOT_PUBLIC.format(why="local"))
