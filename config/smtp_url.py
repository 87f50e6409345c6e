"""Reads SMTP_URL: where the mail server is, and how to speak with it."""

import re
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit

from promptstack.config.redis_url import check_characters, check_port

PORTS = {"smtp": 587, "smtps": 465}
HOST = re.compile(r"[\w.:-]+", re.ASCII)
FORM = "write it as smtp://user:password@host:587, or smtps:// for TLS from the first byte"


@dataclass(frozen=True)
class SmtpUrl:
    """The address of a mail server. Its certificate is always checked where there is TLS."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    is_tls: bool
    """Whether the connection begins with TLS."""
    starts_tls: bool
    """Whether it must be turned into TLS before anything else is said (STARTTLS)."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a URL. Raises `ValueError` without the URL, which has a password."""
        check_characters(url)
        parts = urlsplit(url)
        if parts.scheme not in PORTS:
            raise ValueError(f"must be a URL of smtp:// or smtps://; {FORM}")
        check_port(url)
        if not HOST.fullmatch(parts.hostname or ""):
            raise ValueError(f"names no host; {FORM}")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        is_plain = options == {"tls": "off"}
        if parts.path.strip("/") or parts.fragment or (options and not is_plain):
            raise ValueError(f"takes no path, and no option but tls=off; {FORM}")
        is_tls = parts.scheme == "smtps"
        if is_plain and is_tls:
            raise ValueError("smtps:// is TLS, so tls=off can't be said with it")
        if bool(parts.username) != bool(parts.password):
            raise ValueError(f"has a user or a password, but not both; {FORM}")
        if is_plain and parts.password:
            raise ValueError("has tls=off, and a password must not be sent in the clear")
        return cls(
            parts.hostname or "",
            parts.port or PORTS[parts.scheme],
            unquote(parts.username or ""),
            unquote(parts.password or ""),
            is_tls,
            starts_tls=not is_tls and not is_plain,
        )
