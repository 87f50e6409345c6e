"""Celery's events on their way to monitors."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from promptstack.tasks.views import monitors
from promptstack.tasks.views.monitors import BufferingDispatcher, Monitors


class Sent(list[Any]):
    """A producer that keeps what it is given."""

    def publish(self, event: Any, **_: Any) -> None:
        self.append(event)


@pytest.fixture
def dispatcher() -> Any:
    app = Celery(set_as_current=False)
    connection = app.connection_for_write("memory://")
    made: Any = BufferingDispatcher(connection, app=app, buffer_group=["task"])
    made.producer = Sent()
    return made


def test_events_are_sent_by_the_thread_of_the_consumer_alone(dispatcher: Any) -> None:
    asked: list[str] = []
    consumer = SimpleNamespace(
        event_dispatcher=dispatcher, on_send_event_buffered=lambda: asked.append("to send")
    )
    watched = Monitors()
    watched.watch(SimpleNamespace(consumer=consumer))
    watched.flush()
    assert asked == [], "nothing is there to send"
    for number in range(10_000):
        assert watched.send("task-progress", str(number))
    watched.flush()
    assert asked == ["to send"]
    assert dispatcher.producer == []
    dispatcher.flush()  # as the consumer does
    assert [len(batch) for batch in dispatcher.producer] == [monitors.MAX_BUFFERED]
    assert not dispatcher.buffered


def test_events_of_an_outage_are_sent_by_the_next_connection(dispatcher: Any) -> None:
    dispatcher.send("task-progress", uuid="during")
    after: Any = BufferingDispatcher(
        dispatcher.connection, app=dispatcher.app, buffer_group=["task"]
    )
    after.producer = Sent()
    after.send("task-progress", uuid="after")
    after.extend_buffer(dispatcher)
    after.flush()
    assert [event["uuid"] for event in after.producer[0]] == ["during", "after"]
