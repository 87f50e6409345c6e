"""The secrets that sign events: made here, kept encrypted, and used for Standard Webhooks.

Who sends must have the secret itself, so no hash of it will do. In the ledger it stands encrypted
with a key made of SECRET_KEY: a copy of the database signs nothing.
"""

import base64
import secrets as random
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from promptstack.services.webhooks.errors import SecretUnreadable

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

PURPOSE = "webhook-secrets"
PREFIX = "whsec_"
SECRET_BYTES = 32


def new_secret() -> str:
    """A secret as Standard Webhooks writes it."""
    return PREFIX + base64.b64encode(random.token_bytes(SECRET_BYTES)).decode()


class SecretBox:
    """Encrypts secrets for the ledger: with the first key, and reads what any of the keys wrote."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """Take keys of 32 bytes each."""
        self._keys = keys

    @cached_property
    def _fernet(self) -> "MultiFernet":
        from cryptography.fernet import Fernet, MultiFernet  # noqa: PLC0415 - few callers seal

        return MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in self._keys])

    def seal(self, secret: str) -> str:
        """The secret as it stands in the ledger."""
        return self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """The secret. Raises `SecretUnreadable`."""
        from cryptography.fernet import InvalidToken  # noqa: PLC0415 - as above

        try:
            return self._fernet.decrypt(sealed).decode()
        except InvalidToken:
            raise SecretUnreadable(
                "The endpoint's secret was encrypted with another SECRET_KEY. Set "
                "PREVIOUS_SECRET_KEY to that one, or rotate the endpoint's secret."
            ) from None

    def seal_anew(self, sealed: str) -> str:
        """The same secret, encrypted with the first key. Raises `SecretUnreadable`."""
        return self.seal(self.open(sealed))


def signed_headers(
    secrets: Iterable[str], event: str, at: datetime, body: str
) -> Mapping[str, str]:
    """The headers by which a receiver knows an event: a signature by each of the secrets."""
    from standardwebhooks import Webhook  # noqa: PLC0415 - only who sends needs it

    at = at.astimezone(UTC)  # the library takes the time as if it were UTC's
    signatures = [Webhook(secret).sign(event, at, body) for secret in secrets]
    return {
        "webhook-id": event,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
