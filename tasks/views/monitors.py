"""Celery's events, for Flower and other monitors: buffered, and sent many at a time.

Celery would publish every event by itself, which costs a worker more than the job.
"""

import sys
from typing import Any

from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher

MAX_BUFFERED = 5_000
"""Events kept while none can be sent. More are dropped: they only show what the ledger knows."""
GROUP = "task"


class BufferingDispatcher(EventDispatcher):
    """Keeps the events of tasks for `Monitors.flush`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # No limit at which whoever adds an event would send them, in any thread.
        options |= {"buffer_limit": sys.maxsize, "on_send_buffered": None}
        super().__init__(*args, **options)

    @property
    def buffered(self) -> int:
        """How many events wait."""
        buffers: Any = self  # more than its types tell
        return len(buffers._group_buffer[GROUP]) + len(buffers._outbound_buffer)

    def send(self, *event: Any, **fields: Any) -> Any:
        """Buffer an event of a task, or send another one."""
        if self.buffered < MAX_BUFFERED:
            return super().send(*event, **fields)
        return None

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

    def __init__(self) -> None:
        self._controller: Any = None

    def watch(self, controller: Any) -> None:
        """Send by this worker's own connection from now on."""
        self._controller = controller

    def send(self, name: str, task_id: str, **fields: Any) -> bool:
        """Send an event soon. Returns False where there is no worker to send it."""
        dispatcher = self._dispatcher()
        if dispatcher is None:
            return False
        dispatcher.send(name, uuid=task_id, **fields)
        return True

    def flush(self) -> None:
        """Have the consumer's thread send what is buffered. A worker calls it again and again.

        Only that thread may use its connections, which it also reads.
        """
        dispatcher = self._dispatcher()
        if dispatcher is not None and dispatcher.buffered:
            self._controller.consumer.on_send_event_buffered()

    def _dispatcher(self) -> BufferingDispatcher | None:
        """Return the worker's dispatcher; None while it is not connected."""
        consumer = getattr(self._controller, "consumer", None)
        dispatcher: BufferingDispatcher | None = getattr(consumer, "event_dispatcher", None)
        return dispatcher
