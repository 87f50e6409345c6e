"""Redis as the broker of a worker; mends two faults of kombu 5.7 that end the whole process."""

from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.redis import Channel, QoS, Transport
from redis.exceptions import OutOfMemoryError


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


class BrokerTransport(Transport):
    """Treats a Redis that is full as one that is away: the worker connects again when it isn't."""

    Channel = BrokerChannel
    connection_errors = (*Transport.connection_errors, OutOfMemoryError)


def use_in_this_process() -> None:
    """Let all connections to Redis brokers use it; a worker does so before it connects."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = "promptstack.tasks.broker:BrokerTransport"
