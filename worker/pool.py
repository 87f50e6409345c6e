"""Celery's pool of this worker: tasks are coroutines on the event loop, and not threads.

Everything that Celery does about a task, before and after, is done in Celery's own thread, which
alone owns the connection to the broker: it takes the message, acknowledges it, and writes results
and events. When coroutines have ended, the event loop wakes that thread, once for all of them.
While it waits for a broker that is away, another thread shows what has ended.
"""

import asyncio
import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery.concurrency.base import BasePool, apply_target

from promptstack.config.celery import ROUTES
from promptstack.config.names import Queue, TaskName

logger = logging.getLogger(__name__)

MAINTENANCE_SLOTS = 2
"""For maintenance beside the slots of all jobs: an operation may cancel those that hold them."""
MAINTENANCE = frozenset(task for task, queue in ROUTES.items() if queue is Queue.MAINTENANCE) - {
    TaskName.TAKE_BATCH_IN
}
"""What may use them. The file of a batch is read for minutes, so it waits for another slot."""
LATE_SECONDS = 0.5
"""After this, Celery's thread is taken to wait for a broker."""
RUNTIME: ContextVar[float | None] = ContextVar("runtime", default=None)
"""How long the task took whose end is told now, in seconds; None if it is one of Celery's own."""


@dataclass(eq=False)
class _Message:
    """A task that Celery has received, and how Celery wants to hear of it."""

    trace: Callable[..., tuple[int, Any, float]]
    """Celery's: runs the task's body, keeps its result, and returns it."""
    args: tuple[Any, ...]
    """Of `trace`: the task's name and id, its request, its body and how that is encoded."""
    accepted: Callable[[int, float], None]
    ended: Callable[[tuple[int, Any, float]], None]
    accepted_at: float = 0.0
    ended_at: float = 0.0

    @property
    def is_maintenance(self) -> bool:
        """Whether it is the work of maintenance, such as an operation on jobs."""
        return self.args[0] in MAINTENANCE

    @property
    def request(self) -> dict[str, Any]:
        """The request, as a mapping that the task sees as its `self.request`."""
        request: dict[str, Any] = self.args[2]
        return request


class CoroutinePool(BasePool):
    """Runs as many tasks at once as `most_jobs` says. Celery's thread calls all but `_note_end`."""

    body_can_be_buffer = True
    signal_safe = False
    """A signal handler must not wait for running tasks."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        logging.getLogger("celery.app.trace").addFilter(_tell_runtime)
        self.most_jobs: Callable[[], int] = lambda: self.limit
        self._waiting: deque[_Message] = deque()
        self._running: set[_Message] = set()
        self._ended: deque[_Message] = deque()
        self._is_woken = False
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)

    def register_with_event_loop(self, loop: Any) -> None:
        """Let Celery's loop call us when coroutines have ended. Called for each connection."""
        loop.add_reader(self._wakeup.fileno(), self._finish_ended)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        callback: Callable[..., None],
        accept_callback: Callable[[int, float], None],
        **_: Any,
    ) -> None:
        """Run a task, or let it wait until another one ends."""
        if not asyncio.iscoroutinefunction(self.app.tasks[args[0]].run):
            apply_target(target, args, kwargs, callback, accept_callback)  # one of Celery's own
            return
        self._waiting.append(_Message(target, args, accept_callback, callback))
        self._start_waiting()

    def on_stop(self) -> None:
        """Wait for the running tasks. Those that wait have not begun, and are left."""
        self._waiting.clear()
        while self._running:
            select.select([self._wakeup], [], [], LATE_SECONDS)
            self._finish_ended()
        self._wakeup.close()
        self._waker.close()

    def on_terminate(self) -> None:
        """Do as `on_stop` does: the worker has cancelled what runs."""
        self.on_stop()

    def _get_info(self) -> dict[str, Any]:
        pool: Any = super()  # more than its types tell
        return {**pool._get_info(), "running": len(self._running)}

    @property
    def num_processes(self) -> int:
        """How many messages Celery may take from Redis. It counts those whose end it must tell."""
        return self.most_jobs() + len(self._ended)

    @property
    def has_room_for_maintenance_alone(self) -> bool:
        """Whether all slots are taken but those of maintenance."""
        return 0 <= len(self._running) - self.num_processes < MAINTENANCE_SLOTS

    def _next(self) -> _Message | None:
        """The next message that may begin."""
        for place, message in enumerate(self._waiting):
            slots = self.num_processes + MAINTENANCE_SLOTS * message.is_maintenance
            if len(self._running) < slots:
                del self._waiting[place]
                return message
        return None

    def _start_waiting(self) -> None:
        while (message := self._next()) is not None:
            message.accepted_at = time.monotonic()
            self._running.add(message)
            try:
                message.accepted(os.getpid(), message.accepted_at)
            except Exception:
                # Celery's loop would end the worker for it.
                logger.exception("task %s is not shown to run", message.args[1])
            task = self.app.tasks[message.args[0]]
            task.loop.call_soon(partial(self._begin, task, message))

    def _begin(self, task: Any, message: _Message) -> None:
        """Begin the coroutine. Called on the event loop."""
        running = asyncio.create_task(task.run_message(message.request))
        message.request["ended"] = running
        running.add_done_callback(lambda _: self._note_end(message))

    def _note_end(self, message: _Message) -> None:
        """Wake Celery's thread. Called on the event loop."""
        message.ended_at = time.monotonic()
        self._ended.append(message)
        if not self._is_woken:
            self._is_woken = True
            self._waker.send(b"\0")

    def _finish_ended(self) -> None:
        """Let Celery keep the results of what has ended, and begin what waits."""
        with suppress(BlockingIOError):  # another call has seen to it
            self._wakeup.recv(4_096)
        # Before the first look: who adds one after the last look wakes us again.
        self._is_woken = False
        self._tell_ends()
        self._start_waiting()

    def tell_late_ends(self) -> None:
        """Tell the ends that Celery's thread is late to tell. Called by another thread."""
        with suppress(IndexError):
            if time.monotonic() - self._ended[0].ended_at > LATE_SECONDS:
                self._tell_ends()

    def _tell_ends(self) -> None:
        while True:
            try:
                message = self._ended.popleft()
            except IndexError:
                return
            took = message.ended_at - message.accepted_at
            RUNTIME.set(took)
            try:
                failed, result, _ = message.trace(*message.args)
                message.ended((failed, result, took))
            except Exception:
                # Its job has ended in the ledger; the other jobs must not suffer.
                logger.exception("what became of task %s is not shown", message.args[1])
            self._running.discard(message)
            RUNTIME.set(None)


def _tell_runtime(record: logging.LogRecord) -> bool:
    """Log how long a task took: Celery has only seen how long it took to tell its end."""
    if isinstance(record.args, dict) and "runtime" in record.args:
        record.args["runtime"] = RUNTIME.get() or record.args["runtime"]
    return True
