"""Webhooks under fire: receivers fail and hang, workers are killed, and every event arrives."""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable

from standardwebhooks.webhooks import Webhook

from promptstack.repositories.models import JobState
from promptstack.tasks.worker_services import WorkerServices
from tests.processes import Process, wait_until
from tests.webhooks import HANG, TAKE, Event, deliveries, receiver

logger = logging.getLogger(__name__)

EVENTS = int(os.environ.get("WEBHOOK_TEST_EVENTS", "60"))
KILLS = 5
WORKER = {
    "WEBHOOK_ALLOWED_HOSTS": "127.0.0.1",
    "WEBHOOK_RETRY_SECONDS": ",".join(["0", *["0.2"] * 40]),
    "WEBHOOK_TIMEOUT_SECONDS": "1",
}


class Moody:
    """Fails every third request, and hangs at every tenth."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def __call__(self, _: Event) -> int:
        with self._lock:
            self.count += 1
            number = self.count
        if number % 10 == 0:
            return HANG
        return 500 if number % 3 == 0 else TAKE


def test_every_event_arrives_though_receivers_fail_and_workers_are_killed(
    stack: WorkerServices, start_worker: Callable[..., Process]
) -> None:
    stack.settings.webhook_allowed_hosts = ["127.0.0.1"]
    moody = Moody()
    with receiver(moody) as served:
        secret = stack.webhooks.create(served.url).secret
        jobs = [
            job
            for start in range(0, EVENTS, 500)
            for job in stack.jobs.enqueue_many(
                [
                    {"prompt": f"Say {n}.", "provider": "demo"}
                    for n in range(start, min(start + 500, EVENTS))
                ]
            )
        ]
        began = time.monotonic()
        worker = start_worker(**WORKER)
        for kill in range(KILLS):
            enough = EVENTS * (kill + 1) // (KILLS + 2)
            wait_until(
                lambda enough=enough: len({one.id for one in served.taken}) >= enough,  # type: ignore[misc]
                "some events at the receiver",
                600,
            )
            worker.kill()
            worker = start_worker(**WORKER)
        wait_until(lambda: len({one.id for one in served.taken}) >= EVENTS, "all events", 900)
        took = time.monotonic() - began
        wait_until(lambda: all(one.state == "delivered" for one in deliveries(stack)), "the log")
        taken, asked = list(served.taken), moody.count

    known = {f"evt_{one.event_id.hex}": str(one.object_id) for one in deliveries(stack)}
    assert {one.id: one.body["data"]["id"] for one in taken} == known
    assert Counter(known.values()) == Counter(str(job.id) for job in jobs), "one event a job"
    for event in taken[-20:]:
        Webhook(secret).verify(event.raw, event.headers)
    assert {job.state for job in stack.jobs.get_all([job.id for job in jobs])} <= {
        JobState.SUCCEEDED,
        JobState.FAILED,
    }
    logger.info(
        "%d events, %d requests, %d taken twice, %d kills, %.1f s",
        EVENTS,
        asked,
        len(taken) - EVENTS,
        KILLS,
        took,
    )
