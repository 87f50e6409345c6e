"""The consumer of Celery's messages: how it connects, and how long it holds a message."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker import state
from kombu.exceptions import OperationalError

from promptstack.worker.consumer import RECONNECT_SECONDS, JobConsumer

AWAY = "amqp://127.0.0.1:1//"
TRIES = 8


@pytest.fixture
def consumer() -> JobConsumer:
    app = Celery(broker=AWAY, set_as_current=False)
    app.conf.update(broker_connection_max_retries=TRIES, broker_connection_retry_on_startup=True)
    controller = SimpleNamespace(use_eventloop=True)
    return JobConsumer(lambda request: None, app=app, controller=controller)


def test_a_broker_that_is_away_for_long_is_asked_as_often_as_at_first(
    consumer: JobConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("kombu.utils.functional.sleep", waits.append)
    with pytest.raises(OperationalError):
        consumer.connection_for_write()
    assert sum(waits) <= TRIES * RECONNECT_SECONDS


class Held:
    """A message in a worker."""

    def __init__(self) -> None:
        self.acknowledged = False

    def acknowledge(self) -> None:
        self.acknowledged = True


def test_a_message_is_acknowledged_when_its_job_takes_long(
    consumer: JobConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: Any = state.reserved_requests.__class__()
    monkeypatch.setattr(state, "reserved_requests", known)
    long, quick = Held(), Held()
    known.update({long, quick})
    consumer.acknowledge_held()
    assert not long.acknowledged, "it may just have come"
    known.discard(quick)
    late = Held()
    known.add(late)
    consumer.acknowledge_held()
    assert (long.acknowledged, quick.acknowledged, late.acknowledged) == (True, False, False)
    consumer.acknowledge_held()
    assert late.acknowledged
