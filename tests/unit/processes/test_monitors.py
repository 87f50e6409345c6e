"""Celery's events on their way to monitors."""

import json
from base64 import b64decode
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from promptstack.services.jobs.publishing import BrokerUnavailable
from promptstack.tasks.messages import gathered_events
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


class Listener:
    """Monitors on Redis: what they are told, and how many they are."""

    def __init__(self) -> None:
        self.heard: list[list[str]] = []
        self.monitors = 1
        self.is_away = False

    def tell(self, events: list[Any], worker: str) -> int:
        if self.is_away:
            raise BrokerUnavailable("Redis is away.")
        self.heard.append([event["uuid"] for event in events])
        return self.monitors


def test_no_event_is_made_while_nobody_listens(
    dispatcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("promptstack.tasks.views.monitors.time.monotonic", lambda: now)
    listener = Listener()
    watched = Monitors(listener.tell)
    watched.watch(SimpleNamespace(consumer=SimpleNamespace(event_dispatcher=dispatcher)))

    def send(task_id: str) -> None:
        assert watched.send("task-progress", task_id)
        watched.flush()

    send("heard")
    listener.monitors = 0
    send("the last of them has left")
    send("not made")
    now += monitors.UNHEARD_SECONDS
    listener.monitors = 1
    send("somebody is there")
    send("again")
    assert listener.heard == [
        ["heard"],
        ["the last of them has left"],
        ["somebody is there"],
        ["again"],
    ]
    dispatcher.unheard_until = now + 1.0
    dispatcher.send("worker-heartbeat")  # those of workers are always sent
    assert [event["type"] for event in dispatcher.producer] == ["worker-heartbeat"]


def test_events_stay_in_order_while_redis_is_away(dispatcher: Any) -> None:
    listener = Listener()
    watched = Monitors(listener.tell)
    watched.watch(SimpleNamespace(consumer=SimpleNamespace(event_dispatcher=dispatcher)))
    listener.is_away = True
    watched.send("task-progress", "first")
    watched.flush()
    watched.send("task-progress", "second")
    watched.flush()
    listener.is_away = False
    watched.flush()
    assert listener.heard == [["first", "second"]]


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


def test_a_foreign_task_s_odd_name_costs_no_event_of_the_others() -> None:
    events = [{"type": "task-received", "args": "\ud800"}, {"type": "task-received", "args": "x"}]
    message = json.loads(gathered_events(events, "worker@host"))
    assert json.loads(b64decode(message["body"])) == events
