"""Secrets of the key before are encrypted anew, so that it can be taken away."""

import logging

from promptstack.repositories.session import Ledger
from promptstack.services.webhooks.errors import SecretUnreadable
from promptstack.services.webhooks.secrets import SecretBox

logger = logging.getLogger(__name__)


class WebhookUpkeep:
    """Encrypts secrets anew after SECRET_KEY was replaced."""

    def __init__(self, ledger: Ledger, secrets: SecretBox, *, seals_anew: bool) -> None:
        """Take `seals_anew` where there is a key before the current one."""
        self._ledger = ledger
        self._secrets = secrets
        self._seals_anew = seals_anew

    def run_once(self) -> None:
        """Do so once, in each worker that starts."""
        if self._seals_anew:
            self._seal_anew()
            self._seals_anew = False

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
