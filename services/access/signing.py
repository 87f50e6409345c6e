"""Keys made of SECRET_KEY: one for each purpose, and of two secrets while it is replaced."""

import hashlib
import hmac
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, repr=False)
class SigningKey:
    """A key for one purpose."""

    id: str
    """Names the key in what it has signed, and tells nothing of it."""
    secret: bytes

    @classmethod
    def derive(cls, secret: str, purpose: str) -> Self:
        """Make the key of a purpose: what one of them signs is worth nothing as the other."""
        key = hmac.digest(secret.encode(), f"promptstack:{purpose}".encode(), hashlib.sha256)
        return cls(hashlib.sha256(b"id:" + key).hexdigest()[:16], key)


class SigningKeys:
    """The keys of one purpose: the first one signs, all of them are accepted."""

    def __init__(self, purpose: str, secrets: Sequence[str]) -> None:
        self._keys = [SigningKey.derive(secret, purpose) for secret in secrets]

    @property
    def current(self) -> SigningKey:
        """The key that signs."""
        return self._keys[0]

    def __iter__(self) -> Iterator[SigningKey]:
        """All of them, the one that signs first."""
        return iter(self._keys)

    def find(self, key_id: object) -> SigningKey | None:
        """The key with this id, if it is one of ours."""
        return next((key for key in self._keys if key.id == key_id), None)

    def sign(self, text: str) -> str:
        """A signature of a text, in hexadecimal digits."""
        return _signature(self.current, text)

    def accepts(self, text: str, signature: str) -> bool:
        """Whether one of the keys has signed this text so."""
        given = signature.encode("utf-8", "replace")
        return any(hmac.compare_digest(_signature(key, text).encode(), given) for key in self._keys)


def _signature(key: SigningKey, text: str) -> str:
    return hmac.digest(key.secret, text.encode(), hashlib.sha256).hex()
