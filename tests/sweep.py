"""Looks for marked secrets in whatever a deployment writes, shows and keeps."""

import html
import json
import secrets
import threading
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, quote_plus

from redis import Redis
from sqlalchemy import Connection, text

from tests.processes import join

PIECE = 20
"""So many last characters of a token are looked for, too: some places cut what they show."""

EXCERPT = 200


@dataclass(frozen=True)
class Finding:
    """A secret where none may be."""

    place: str
    secret: str
    """Its name."""
    excerpt: str = field(default="", compare=False)


class Sweep:
    """The secrets that are looked for, and where they were found."""

    def __init__(self) -> None:
        self._forms: dict[str, frozenset[bytes]] = {}
        self.findings: list[Finding] = []
        self.looked_at: dict[str, int] = {}
        """Bytes by place: a place with none was not swept."""

    def make(self, name: str, around: str = "{}") -> str:
        """Make up a secret; `around` says what it begins and ends with."""
        core = secrets.token_hex(PIECE // 2)
        secret = around.format(core)
        # What is cut, or quoted in a way that nobody thought of, still has the core.
        self._forms[name] = forms(secret) | forms(core)
        return secret

    def know(self, name: str, secret: str) -> str:
        """Look for a secret that the deployment made."""
        assert len(secret) >= PIECE, name
        self._forms[name] = forms(secret) | forms(secret[-PIECE:])
        return secret

    def look(self, place: str, shown: str | bytes, *, but: Collection[str] = ()) -> None:
        """Look through what was found in a place, for all secrets `but` those that belong there."""
        content = shown.encode(errors="surrogateescape") if isinstance(shown, str) else shown
        self.looked_at[place] = self.looked_at.get(place, 0) + len(content)
        for name, known in self._forms.items():
            found = [content.index(form) for form in known if form in content]
            if name not in but and found:
                start = max(0, min(found) - EXCERPT)
                excerpt = content[start : min(found) + EXCERPT].decode(errors="replace")
                self.findings.append(Finding(place, name, excerpt))


def forms(secret: str) -> frozenset[bytes]:
    """All spellings in which a secret may stand somewhere."""
    in_json = json.dumps(secret)[1:-1]
    spellings = {
        secret,
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        repr(secret)[1:-1],
        in_json,
        json.dumps(in_json)[1:-1],
        html.escape(secret),
        secret.encode().hex(),
    }
    return frozenset(spelling.encode() for spelling in spellings) | _in_base64(secret.encode())


def _in_base64(secret: bytes) -> frozenset[bytes]:
    """The part of it that is the same whatever stands before and after it."""
    found = set()
    for before in range(3):
        first = -(-before * 8 // 6)
        last = (before + len(secret)) * 8 // 6
        for encode in (b64encode, urlsafe_b64encode):
            found.add(encode(bytes(before) + secret)[first:last])
    return frozenset(found)


def in_redis(redis: Redis) -> Iterator[tuple[str, bytes]]:
    """Every key of a database with its value, as text and as Redis would dump it."""
    readers: dict[Any, Any] = {
        b"string": redis.get,
        b"hash": redis.hgetall,
        b"list": lambda key: redis.lrange(key, 0, -1),
        b"set": redis.smembers,
        b"zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
        b"stream": redis.xrange,
    }
    for key in redis.scan_iter(count=1_000):
        kind = redis.type(key)
        if kind == b"none":  # it expired meanwhile
            continue
        parts = [key, *_parts(readers[kind](key)), redis.dump(key) or b""]
        yield f"Redis: {key.decode(errors='replace')}", b"\n".join(parts)


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from (*_parts(name), *_parts(part))
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from _parts(part)


@contextmanager
def redis_traffic(redis: Redis) -> Iterator[list[str]]:
    """All commands that come to the server: what was there for a moment, and what was published."""
    seen: list[str] = []
    end = f"end-{secrets.token_hex(8)}"
    with redis.monitor() as monitor:  # type: ignore[no-untyped-call]

        def listen() -> None:
            for command in monitor.listen():
                if end in command["command"]:
                    return
                seen.append(command["command"])

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            yield seen
        finally:
            redis.echo(end)
            join(listener)


def in_ledger(connection: Connection) -> Iterator[tuple[str, str]]:
    """Every table of the ledger, and all of its rows as text."""
    tables = connection.scalars(
        text(
            "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n"
            " ON n.oid = c.relnamespace WHERE c.relkind = 'r'"
            " AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1"
        )
    ).all()
    for table in tables:
        rows = connection.scalars(text(f"SELECT whole::text FROM {table} AS whole"))
        yield table, "\n".join(rows)
