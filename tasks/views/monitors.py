"""Celery's events, for Flower and other monitors: gathered, and sent many at a time.

Celery would publish every event by itself, which costs a worker more than the job.
"""

from typing import Any

from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher

KEPT = 5_000
"""Events gathered before one who adds to them must send them himself."""


class GatheringDispatcher(EventDispatcher):
    """Keeps the events of tasks for `Monitors.flush`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options |= {"buffer_limit": KEPT, "on_send_buffered": None}
        super().__init__(*args, **options)


class GatheredEvents(Events):
    """What makes the app's dispatchers."""

    dispatcher_cls = "promptstack.tasks.views.monitors:GatheringDispatcher"


class Monitors:
    """The monitors of one worker's tasks."""

    def __init__(self) -> None:
        self._controller: Any = None

    def watch(self, controller: Any) -> None:
        """Send by a worker's own connection from now on."""
        self._controller = controller

    def send(self, name: str, task_id: str, **fields: Any) -> bool:
        """Send an event soon; False where there is no worker to send it."""
        dispatcher = self._dispatcher()
        if dispatcher is None:
            return False
        dispatcher.send(name, uuid=task_id, **fields)
        return True

    def flush(self) -> None:
        """Send what was gathered. Called again and again while a worker runs."""
        dispatcher = self._dispatcher()
        if dispatcher is not None:
            dispatcher.flush()

    def _dispatcher(self) -> EventDispatcher | None:
        """None before a worker is connected, and while it connects anew."""
        consumer = getattr(self._controller, "consumer", None)
        dispatcher: EventDispatcher | None = getattr(consumer, "event_dispatcher", None)
        return dispatcher
