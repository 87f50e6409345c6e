"""Celery's consumer, which finds a broker again soon, and holds no message for too long."""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty
from typing import Any
from weakref import WeakSet

from celery.app.task import Context
from celery.exceptions import NotRegistered
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from kombu.utils.url import maybe_sanitize_url

from promptstack.config.names import Queue
from promptstack.services.text import shown_name
from promptstack.tasks.broker import BrokerChannel

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = 2
"""Between two tries to connect. Celery's waits grow to 30 s, for which a broker is back unused."""
HELD_SECONDS = 600.0
"""How often messages are looked through, and those acknowledged that were there the last time.
RabbitMQ closes a channel on which a message was not acknowledged for 30 minutes."""


MAINTENANCE_SECONDS = 0.5
"""How often maintenance is looked for while all slots are taken."""


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

    def connect(self) -> Any:
        """Connect to the broker. What Flower shows of the connection names no password.

        Celery leaves it out of all URLs but that of a Unix socket, where it stands in the host's.
        """
        conn: Any = super().connect()
        conn.info = partial(_without_password, conn.info)
        return conn

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], Any]:
        """Make what receives a message. It drops one that is none of a task.

        Celery would end the worker for some, such as one with the body `{}`.
        """
        celery: Any = self  # more than its types tell
        handle: Callable[[Any], Any] = super().create_task_handler(*args, **options)
        broken = (*celery.connection_errors, *celery.channel_errors)

        def handle_or_drop(message: Any) -> Any:
            try:
                return handle(message)
            except broken:
                raise
            except Exception as error:  # noqa: BLE001 - anybody can write to a queue
                # Without the message: it may hold a text of somebody.
                logger.warning("a message that is no task is dropped (%s)", type(error).__name__)
                if not self.app.conf.worker_disable_prefetch:
                    message.reject_log_error(logger, broken)

        return handle_or_drop

    # Celery logs messages whole that it can't use. They may hold a text of somebody.

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Drop a message whose body can't be read."""
        logger.warning("a message that can't be read is dropped (%s)", type(exc).__name__)
        message.ack()

    def on_unknown_message(self, body: object, message: Any) -> None:
        """Drop a message of another form."""
        logger.warning("a message that is no task is dropped")
        self._reject(message)

    def on_invalid_task(self, body: object, message: Any, exc: Exception) -> None:
        """Drop a task's message that lacks something."""
        logger.warning("a task's message is not valid and is dropped (%s)", type(exc).__name__)
        self._reject(message)

    def on_unknown_task(self, body: object, message: Any, exc: Exception) -> None:
        """Tell whoever waits for a task that it is none of ours."""
        task_id, name = str(message.headers.get("id")), str(message.headers.get("task"))
        shown = shown_name(name)
        logger.warning("task %s of the name %s is none of ours and has failed", task_id, shown)
        self._reject(message)
        request = Context(message.headers, errbacks=None)
        self.app.backend.mark_as_failure(task_id, NotRegistered(shown), request=request)

    def _reject(self, message: Any) -> None:
        if not self.app.conf.worker_disable_prefetch:
            celery: Any = self
            message.reject_log_error(logger, (*celery.connection_errors, *celery.channel_errors))

    def call_soon_ack(self, p: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Let the consumer's thread acknowledge or reject a message."""
        celery: Any = super()  # more than its types tell
        return celery.call_soon_ack(_if_connected, p, *args, **kwargs)

    def register_with_event_loop(self, hub: Any) -> None:
        """Begin to look through the messages, anew for each connection."""
        super().register_with_event_loop(hub)
        if self.app.conf.task_acks_late:
            hub.call_repeatedly(HELD_SECONDS, self.acknowledge_held)
        hub.call_repeatedly(MAINTENANCE_SECONDS, self.take_maintenance)

    def take_maintenance(self) -> None:
        """Take a message of maintenance, though no other is taken: all slots may hang.

        Other brokers than Redis have given their messages to the worker already.
        """
        celery: Any = self  # more than its types tell
        channel = None if celery.task_consumer is None else celery.task_consumer.channel
        if isinstance(channel, BrokerChannel) and celery.pool.has_room_for_maintenance_alone:
            with suppress(Empty):
                channel.take(Queue.MAINTENANCE)

    def acknowledge_held(self) -> None:
        """Acknowledge messages of jobs that take long. The ledger has the jobs."""
        held = {each for each in state.reserved_requests if not each.acknowledged}
        for request in held & set(self._held):
            request.acknowledge()
        self._held = WeakSet(held)


def _without_password(info: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    said = info()
    return {**said, "hostname": maybe_sanitize_url(said["hostname"])}


def _if_connected(answer: Any, *args: Any, **kwargs: Any) -> None:
    """Answer a message, unless its connection broke: then the broker has taken the message back."""
    message = answer.__self__
    if message.channel.connection is not None:
        answer(*args, **kwargs)
