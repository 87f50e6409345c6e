"""Celery's consumer, which finds a broker again soon, and holds no message for too long."""

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakSet

from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.request import Request

RECONNECT_SECONDS = 2
"""Between two tries to connect. Celery's waits grow to 30 s, for which a broker is back unused."""
HELD_SECONDS = 600.0
"""How often messages are looked through, and those acknowledged that were there the last time.
RabbitMQ closes a channel on which a message was not acknowledged for 30 minutes."""


class JobConsumer(Consumer):
    """Takes messages, on a connection that only its own thread uses.

    Threads that finish jobs ask it to acknowledge, and to send events, by `call_soon`. Two threads
    on one connection would each take parts of the broker's answers away from the other.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._held: WeakSet[Request] = WeakSet()

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, and try again until it works or the worker is told to stop."""
        conn.ensure_connection = partial(
            conn.ensure_connection, interval_start=RECONNECT_SECONDS, interval_step=0
        )
        return super().ensure_connected(conn)

    def call_soon_ack(self, p: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Let the consumer's thread acknowledge or reject a message."""
        celery: Any = super()  # more than its types tell
        return celery.call_soon_ack(_if_connected, p, *args, **kwargs)

    def register_with_event_loop(self, hub: Any) -> None:
        """Begin to look through the messages, anew for each connection."""
        super().register_with_event_loop(hub)
        if self.app.conf.task_acks_late:
            hub.call_repeatedly(HELD_SECONDS, self.acknowledge_held)

    def acknowledge_held(self) -> None:
        """Acknowledge messages of jobs that take long. The ledger has the jobs."""
        held = {each for each in state.reserved_requests if not each.acknowledged}
        for request in held & set(self._held):
            request.acknowledge()
        self._held = WeakSet(held)


def _if_connected(answer: Any, *args: Any, **kwargs: Any) -> None:
    """Answer a message, unless its connection broke: then the broker has taken the message back."""
    message = answer.__self__
    if message.channel.connection is not None:
        answer(*args, **kwargs)
