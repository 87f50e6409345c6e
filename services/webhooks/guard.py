"""Keeps events out of private networks, whatever a name leads to when something is sent.

A name is resolved once. Every address that it has is checked, and the connection is made to one of
these: there is no second look-up, whose answer could be another one.
"""

import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from promptstack.services.validation.webhook_urls import WebhookRules, why_not_public
from promptstack.services.webhooks.errors import ForbiddenAddress
from promptstack.services.webhooks.names import LookUp, Names


class GuardedResolver(AbstractResolver):
    """Resolves names for aiohttp, and raises `ForbiddenAddress` for those that lead inside."""

    def __init__(
        self, rules: WebhookRules, look_up: LookUp | None = None, *, wait_seconds: float
    ) -> None:
        self._rules = rules
        self._names = Names(look_up or look_up_by_system, wait_seconds=wait_seconds)

    async def resolve(
        self, host: str, port: int = 0, family: Any = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a host, all of them allowed."""
        found = await self._names.find(host, port)
        if not found:
            raise OSError(f"{host} has no address")
        self.check(host, found)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in found
        ]

    def check(self, host: str, addresses: Sequence[str]) -> None:
        """Raise `ForbiddenAddress` if one of a host's addresses is not public."""
        if self._rules.allows(host):
            return
        for address in addresses:
            why = why_not_public(ip_address(address.partition("%")[0]))
            if why is not None:
                raise ForbiddenAddress(
                    f"{host} leads to an address that is {why}, so nothing was sent. An operator "
                    "can allow the host by WEBHOOK_ALLOWED_HOSTS."
                )

    async def close(self) -> None:
        """Let the threads end; look-ups that hang are left."""
        self._names.close()


def look_up_by_system(host: str, port: int) -> list[str]:
    """Ask the system's resolver."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))
