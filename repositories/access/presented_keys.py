"""API keys as requests present them: looked for with each request, so by one plain statement."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy.pool import PoolProxiedConnection


class PresentedKey(NamedTuple):
    """A key whose secret is known, with its user. It may be revoked or expired."""

    id: UUID
    user_id: UUID
    scopes: Sequence[str]
    providers: Sequence[str] | None
    models: Sequence[str] | None
    requests_a_minute: int | None
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    email: str
    role: str
    tier: str
    is_beta_tester: bool
    disabled_at: datetime | None


_KEY = ", ".join([f"api_keys.{name}" for name in PresentedKey._fields[:9]])
_USER = ", ".join([f"users.{name}" for name in PresentedKey._fields[9:]])
_FIND = f"""
SELECT key_hash, CASE WHEN previous_until > now() THEN previous_hash END, {_KEY}, {_USER}
FROM api_keys JOIN users ON users.id = api_keys.user_id
WHERE key_hash = ANY(%(hashes)s) OR previous_hash = ANY(%(hashes)s) AND previous_until > now()
"""  # noqa: S608 - names of our own


class PresentedKeyRepository:
    """Finds keys on a connection."""

    def __init__(self, connection: PoolProxiedConnection) -> None:
        self._connection = connection

    def find(self, hashes: Sequence[str]) -> dict[str, PresentedKey]:
        """Find keys by the hashes of secrets that are not outdated."""
        cursor: Any = self._connection.cursor()
        with cursor:
            cursor.execute(_FIND, {"hashes": list(hashes)})
            rows = cursor.fetchall()
        # A key that was renewed has two secrets for some time.
        return {key_hash: PresentedKey(*row[2:]) for row in rows for key_hash in row[:2]}
