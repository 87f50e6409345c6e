"""Celery's events, for Flower and other monitors: buffered, and sent many at a time.

Celery would publish every event by itself, which costs a worker more than the job.
"""

from typing import Any

from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher

MAX_BUFFERED = 5_000
"""With more events than this, whoever adds one sends them."""


class BufferingDispatcher(EventDispatcher):
    """Keeps the events of tasks for `Monitors.flush`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options |= {"buffer_limit": MAX_BUFFERED, "on_send_buffered": None}
        super().__init__(*args, **options)


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
        """Send what is buffered. A worker calls it again and again."""
        dispatcher = self._dispatcher()
        if dispatcher is not None:
            dispatcher.flush()

    def _dispatcher(self) -> EventDispatcher | None:
        """Return the worker's dispatcher; None while it is not connected."""
        consumer = getattr(self._controller, "consumer", None)
        dispatcher: EventDispatcher | None = getattr(consumer, "event_dispatcher", None)
        return dispatcher
