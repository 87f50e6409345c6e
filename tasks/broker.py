"""Redis as the broker of a worker; mends three faults of kombu 5.7 that end the whole process."""

import logging
from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.redis import Channel, QoS, Transport
from redis.exceptions import OutOfMemoryError

from promptstack.config.logging import log_unexpected

logger = logging.getLogger(__name__)


class BrokerQoS(QoS):
    """Keeps what was taken and not acknowledged."""

    def restore_unacked(self, client: Any = None) -> Any:
        """Put it back, where there is a connection to do so.

        Without one kombu ends the worker with an AttributeError. What is not put back is only
        messages: the ledger sends them again.
        """
        connection: Any = self.channel.connection
        if connection is None or connection.client is None:
            delivered: Any = self._delivered
            delivered.clear()
            return None
        return super().restore_unacked(client)


class BrokerChannel(Channel):
    """One channel."""

    QoS = BrokerQoS

    def take(self, queue: str) -> None:
        """Take a message of one queue now, and hand it on. Raises `Empty`."""
        channel: Any = self  # more than its types tell
        try:
            message = channel._get(queue)
        except (ValueError, RecursionError):
            logger.warning("a message in the broker is no JSON; it is dropped")
        else:
            channel.connection._deliver(message, queue)

    def _brpop_read(self, **options: Any) -> Any:
        """Take a message; one that is no JSON is dropped."""
        channel: Any = super()  # more than its types tell
        try:
            return channel._brpop_read(**options)
        except (ValueError, RecursionError):
            logger.warning("a message in the broker is no JSON; it is dropped")
            return True


class BrokerTransport(Transport):
    """Treats a Redis that is full as one that is away: the worker connects again when it isn't."""

    Channel = BrokerChannel
    connection_errors = (*Transport.connection_errors, OutOfMemoryError)

    def _deliver(self, message: Any, queue: Any) -> None:
        """Hand a message on; one that can't be read is dropped, whoever has sent it."""
        try:
            super()._deliver(message, queue)
        except Exception as error:
            # kombu takes a KeyError for a lost connection, and a message without parts raises it.
            if isinstance(error, self.connection_errors) and not isinstance(error, KeyError):
                raise
            log_unexpected(logger, "a message in the broker can't be read; it is dropped", error)


def use_in_this_process() -> None:
    """Let all connections to Redis brokers use it; a worker does so before it connects."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = "promptstack.tasks.broker:BrokerTransport"
