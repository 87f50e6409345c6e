"""Celery's events, for Flower and other monitors: buffered, and sent many at a time.

Celery would publish every event by itself, which costs a worker more than the job.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher

from promptstack.services.jobs.publishing import BrokerUnavailable

MAX_BUFFERED = 5_000
"""Events kept while none can be sent. More are dropped: they only show what the ledger knows."""
GROUP = "task"
UNHEARD_SECONDS = 1.0
"""How long no events are made after some that nobody heard."""


class BufferingDispatcher(EventDispatcher):
    """Keeps the events of tasks for `Monitors.flush`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # No limit at which whoever adds an event would send them, in any thread.
        options |= {"buffer_limit": sys.maxsize, "on_send_buffered": None}
        super().__init__(*args, **options)
        self.unheard_until = 0.0
        """Until then, by the monotonic clock, no events of tasks are made: nobody listens."""

    @property
    def buffered(self) -> int:
        """How many events wait."""
        buffers: Any = self  # more than its types tell
        return len(buffers._group_buffer[GROUP]) + len(buffers._outbound_buffer)

    def send(self, type: str, *how: Any, **fields: Any) -> Any:  # noqa: A002 - Celery's name
        """Buffer an event of a task, unless nobody listens, or send another one."""
        is_kept = self.buffered < MAX_BUFFERED and time.monotonic() >= self.unheard_until
        if is_kept or not type.startswith(GROUP):
            return super().send(type, *how, **fields)
        return None

    def take(self) -> list[Any]:
        """Take what is buffered of tasks, to send it."""
        buffers: Any = self
        with buffers.mutex:
            taken: list[Any] = buffers._group_buffer.pop(GROUP, [])
        return taken

    def put_back(self, events: list[Any]) -> None:
        """Buffer what could not be sent, before what came later."""
        buffers: Any = self
        with buffers.mutex:
            buffers._group_buffer[GROUP][:0] = events

    def extend_buffer(self, other: Any) -> None:
        """Take over what the dispatcher of a connection that broke had still to send."""
        super().extend_buffer(other)
        buffers: Any = self
        buffers._group_buffer[GROUP][:0] = other._group_buffer[GROUP]


class BufferedEvents(Events):
    """Makes the app's dispatchers."""

    dispatcher_cls = "promptstack.tasks.views.monitors:BufferingDispatcher"


class Monitors:
    """Sends the events of one worker's tasks."""

    def __init__(self, tell: Callable[[list[Any], str], int] | None = None) -> None:
        """Take what sends events, with the worker's name, and says how many heard them.

        Without it, Celery sends them, by the consumer's connection.
        """
        self._tell = tell
        self._controller: Any = None

    def watch(self, controller: Any) -> None:
        """Send the events of this worker from now on."""
        self._controller = controller

    def send(self, name: str, task_id: str, **fields: Any) -> bool:
        """Send an event soon. Returns False where there is no worker to send it."""
        dispatcher = self._dispatcher()
        if dispatcher is None:
            return False
        dispatcher.send(name, uuid=task_id, **fields)
        return True

    def flush(self) -> None:
        """Send what is buffered; what can't be sent stays. A worker calls it again and again."""
        dispatcher = self._dispatcher()
        if dispatcher is None or not dispatcher.buffered:
            return
        if self._tell is None:
            # Only the consumer's thread may use its connections, which it also reads.
            self._controller.consumer.on_send_event_buffered()
        elif events := dispatcher.take():
            try:
                if not self._tell(events, str(dispatcher.hostname)):
                    dispatcher.unheard_until = time.monotonic() + UNHEARD_SECONDS
            except BrokerUnavailable:
                dispatcher.put_back(events)

    def _dispatcher(self) -> BufferingDispatcher | None:
        """Return the worker's dispatcher; None while it is not connected."""
        consumer = getattr(self._controller, "consumer", None)
        dispatcher: BufferingDispatcher | None = getattr(consumer, "event_dispatcher", None)
        return dispatcher
