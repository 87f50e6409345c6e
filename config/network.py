"""Checks the environment variables of proxies, certificates and headers that SDKs read.

With a wrong one each call of an SDK fails, with an error that names no variable. So they are
checked first.
"""

import os
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from promptstack.config.errors import ConfigurationError
from promptstack.config.providers import Wire, official_host, server_address
from promptstack.config.redis_url import check_certificates, check_characters

CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
HEADERS: Mapping[Wire, tuple[str, ...]] = {
    "openai": ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS"),
    "anthropic": ("ANTHROPIC_CUSTOM_HEADERS",),
    "gemini": (),
}
HTTP = frozenset({"http", "https"})
SOCKS = frozenset({"socks5", "socks5h"})
CONNECTS_TO_ALL: frozenset[Wire] = frozenset({"gemini"})
"""Whose SDK makes ready for each proxy that is named, used or not."""


def check_network(wire: Wire, address: str | None) -> None:
    """Raise `ConfigurationError` with the variable if the SDK of `wire` cannot call a server.

    `address` is None for the provider's own server.
    """
    try:
        url = urlsplit(server_address(address) if address else f"https://{official_host(wire)}")
    except ValueError as error:
        raise ConfigurationError(f"The address of a provider {error}.") from error
    for faults in (_of_certificates(), _of_headers(wire), _of_proxies(wire, url)):
        for variable, reason in faults:
            raise ConfigurationError(f"{variable} {reason}.")


def _of_certificates() -> Iterator[tuple[str, str]]:
    for variable in CERTIFICATES:
        path = os.environ.get(variable)
        try:
            if path and not Path(path).is_dir():
                check_certificates(path)
        except ValueError as error:
            yield variable, str(error)


def _of_headers(wire: Wire) -> Iterator[tuple[str, str]]:
    for variable in HEADERS[wire]:
        value = os.environ.get(variable, "")
        lines = value.split("\n") if variable.endswith("_HEADERS") else [value]
        if not all(line.isascii() and line.isprintable() for line in lines):
            yield variable, "has a line end or another character that no HTTP header can have"


def _of_proxies(wire: Wire, url: SplitResult) -> Iterator[tuple[str, str]]:
    proxies = {scheme: _proxy(scheme) for scheme in ("http", "https", "all")}
    for variable, proxy in proxies.values():
        try:
            scheme = _scheme(proxy) if proxy else "http"
        except ValueError as error:
            yield variable, f"is not a proxy's address such as http://proxy:3128: it {error}"
            continue
        is_idle = wire not in CONNECTS_TO_ALL and not _is_used(variable, url, proxies)
        if scheme not in HTTP and not (scheme in SOCKS and is_idle):
            yield variable, f"names a {scheme}:// proxy; only http:// and https:// can be used"


def _proxy(scheme: str) -> tuple[str, str]:
    """Return the variable of a scheme's proxy, and its value."""
    for variable in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
        if os.environ.get(variable):
            return variable, os.environ[variable]
    return f"{scheme}_proxy".upper(), ""


def _scheme(proxy: str) -> str:
    """Return the scheme of a proxy's address. Raises `ValueError` without its password."""
    check_characters(proxy)
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("has a port that is not a number up to 65535") from None
    if not parts.hostname:
        raise ValueError("names no host")
    if "://" not in proxy and "." not in parts.hostname and not parts.port:
        raise ValueError("has neither http:// before it nor a port after it")
    return parts.scheme


def _is_used(variable: str, url: SplitResult, proxies: Mapping[str, tuple[str, str]]) -> bool:
    of_scheme, proxy = proxies[url.scheme]
    if variable != (of_scheme if proxy else proxies["all"][0]):
        return False
    excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    request: Any = urllib.request  # more than its types tell
    # A whole network in NO_PROXY is not looked into: who has one knows what goes where.
    return not ("/" in excepted or request.proxy_bypass_environment(url.hostname, {"no": excepted}))
