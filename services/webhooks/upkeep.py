"""What is looked after now and then: old deliveries, and secrets of the key before."""

import logging

from promptstack.repositories.session import Ledger
from promptstack.services.webhooks.errors import SecretUnreadable
from promptstack.services.webhooks.secrets import SecretBox

logger = logging.getLogger(__name__)


class WebhookUpkeep:
    """Deletes old deliveries, and encrypts secrets anew after SECRET_KEY was replaced."""

    def __init__(
        self, ledger: Ledger, secrets: SecretBox, *, retention_seconds: float, seals_anew: bool
    ) -> None:
        """Take `seals_anew` where there is a key before the current one."""
        self._ledger = ledger
        self._secrets = secrets
        self._retention_seconds = retention_seconds
        self._seals_anew = seals_anew

    def run_once(self) -> None:
        """Do both, unless another worker does."""
        if self._seals_anew:
            self._seal_anew()
            self._seals_anew = False
        with self._ledger.transaction() as unit:
            if unit.try_lock("prune webhooks"):
                unit.webhook_sending.prune(self._retention_seconds)

    def _seal_anew(self) -> None:
        """So that PREVIOUS_SECRET_KEY can be taken away."""
        with self._ledger.transaction() as unit:
            for endpoint in unit.webhooks.encrypted():
                try:
                    endpoint.secret = self._secrets.seal_anew(endpoint.secret)
                    if endpoint.previous_secret is not None:
                        previous = self._secrets.seal_anew(endpoint.previous_secret)
                        endpoint.previous_secret = previous
                except SecretUnreadable as error:
                    logger.warning("webhook %s: %s", endpoint.id, error)
