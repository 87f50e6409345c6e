"""Turns a Redis URL into a form that redis-py, kombu and Celery read alike.

They differ in whether they check a certificate, in the options they take, and where they look for
the number of the database and the password of a Unix socket.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

SCHEMES = ("redis", "rediss", "unix")
FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
TLS_OPTIONS = ("ssl_cert_reqs", "ssl_check_hostname", *FILES)
DATABASE_OPTIONS = ("db", "virtual_host")
NO = frozenset({"0", "f", "false", "n", "no"})


@dataclass(frozen=True)
class RedisUrl:
    """The address of a Redis server, and how to connect to it."""

    scheme: str
    place: str
    """Host and port; empty for a Unix socket."""
    path: str
    """Of a Unix socket."""
    username: str
    password: str
    database: int
    tls: Mapping[str, str]

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a URL in the form of redis-py or Celery. Raises `ValueError` without the URL."""
        check_characters(url)
        parts = urlsplit(url)
        scheme = "unix" if parts.scheme == "redis+socket" else parts.scheme
        if scheme not in SCHEMES or "://" not in url:
            raise ValueError(_wrong_scheme(parts.scheme))
        place = parts.netloc.rpartition("@")[2]
        if "," in place or ";" in place:
            raise ValueError("must name one server; Sentinel and Cluster are not supported")
        if scheme == "unix" and (place or not parts.path.strip("/")):
            raise ValueError("must name a Unix socket by its whole path (unix:///path/to/socket)")
        check_port(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        return cls(
            scheme,
            place,
            unquote(parts.path) if scheme == "unix" else "",
            unquote(parts.username or ""),
            unquote(parts.password or ""),
            _database(parts.path.strip("/") if scheme != "unix" else "", options),
            _tls(scheme, options),
        )

    def completed(self, *, password: str = "", ca_file: str = "") -> Self:
        """Add what the URL lacks: a password, and the certificate authorities."""
        tls = {"ssl_ca_certs": ca_file, **self.tls} if self.tls and ca_file else self.tls
        return replace(self, password=self.password or password, tls=tls)

    def __str__(self) -> str:
        """The URL for redis-py."""
        if self.scheme == "unix":
            return f"unix://{self._credentials}{quote(self.path)}?db={self.database}"
        query = f"?{urlencode(self.tls)}" if self.tls else ""
        return f"{self.scheme}://{self._credentials}{self.place}/{self.database}{query}"

    def for_celery(self) -> str:
        """The URL for Celery, where a Unix socket is `redis+socket://`."""
        if self.scheme != "unix":
            return str(self)
        place = f"{self._credentials}{quote(self.path)}"
        return f"redis+socket://{place}?virtual_host={self.database}"

    @property
    def _credentials(self) -> str:
        if not (self.username or self.password):
            return ""
        return f"{quote(self.username, safe='')}:{quote(self.password, safe='')}@"


def check_characters(url: str) -> None:
    """Raise `ValueError` for characters that no URL may hold; some parsers drop them silently."""
    if not url.isprintable() or " " in url:
        raise ValueError("has a space, a line end or a control character in it; take it out")


def check_port(url: str) -> None:
    """Raise `ValueError` for a bad port, which a password that is not URL-encoded causes too."""
    hint = "in a password, write # as %23, / as %2F and ? as %3F"
    if "#" in url:
        raise ValueError(f"has a # in it; {hint}")
    try:
        _ = urlsplit(url).port
    except ValueError as error:
        raise ValueError(f"has a port that is not a number up to 65535; {hint}") from error


def check_certificates(path: str) -> None:
    """Raise `ValueError` for a file without certificates of authorities."""
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as error:  # ssl's own errors are of the system's kind
        reason = "holds no certificate" if isinstance(error, ssl.SSLError) else _reason(error)
        raise ValueError(f"names {path}, which {reason}") from error


def _wrong_scheme(scheme: str) -> str:
    if "sentinel" in scheme or "cluster" in scheme:
        return "must name one server; Sentinel and Cluster are not supported"
    return f"must start with one of {', '.join(f'{known}://' for known in SCHEMES)}"


def _database(path: str, options: dict[str, str]) -> int:
    said = {
        value for value in (path, *(options.pop(name, "") for name in DATABASE_OPTIONS)) if value
    }
    if len(said) > 1:
        raise ValueError("names two databases; leave one out")
    number = said.pop() if said else "0"
    if not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise ValueError("must name the database by a number (redis://host:6379/0)")
    return int(number)


def _tls(scheme: str, options: dict[str, str]) -> dict[str, str]:
    unknown = sorted(options.keys() - set(TLS_OPTIONS))
    if unknown:
        raise ValueError(f"may have the options db, {', '.join(TLS_OPTIONS)}, and no other")
    if scheme != "rediss":
        if options:
            raise ValueError("has options for TLS, which only rediss:// speaks")
        return {}
    required = options.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if required not in {"none", "optional", "required"}:
        raise ValueError("must have required or none as ssl_cert_reqs")
    is_checked = options.get("ssl_check_hostname", "true").lower() not in NO
    files = {name: options[name] for name in FILES if options.get(name)}
    for name, path in files.items():
        _check_file(name, path)
    return {
        # A client that takes certificates as optional checks them as if they were required.
        "ssl_cert_reqs": "none" if required == "none" else "required",
        "ssl_check_hostname": str(is_checked and required != "none").lower(),
        **files,
    }


def _check_file(name: str, path: str) -> None:
    if name == "ssl_ca_certs":
        check_certificates(path)
        return
    try:
        Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"has {name}={path}, which {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"
