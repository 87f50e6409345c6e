"""RabbitMQ as the broker: jobs and runs with real workers, and a broker that is restarted."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from celery.result import AsyncResult
from kombu import Connection, Consumer

from promptstack.config.names import Queue
from promptstack.repositories.models import JobState
from promptstack.services.jobs.views import JobView
from promptstack.simulator.process import SimulatorProcess
from promptstack.tasks.composition import PromptStack
from tests.acceptance.test_jobs import (  # noqa: F401 - the same tests, with this broker
    test_a_generation_ends_with_its_text,
    test_async_result_ends_for_jobs_that_end_without_a_message,
    test_failures_on_purpose_are_retried_and_then_succeed,
    test_sigterm_hands_running_work_to_the_next_worker,
)
from tests.acceptance.test_runs import (  # noqa: F401
    test_an_item_that_is_refused_sinks_neither_its_call_nor_its_run,
    test_embeddings_come_out_in_order_and_the_same_run_again_bills_nothing,
    test_what_fails_for_a_while_is_tried_again_and_what_fails_for_good_can_be_retried,
)
from tests.processes import Process, wait_until
from tests.rabbitmq import RabbitMQ, why_missing

MISSING = why_missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

BACK_SECONDS = 10.0
"""How soon jobs move again once the broker is back."""
SLOTS = 16
JOBS = 160


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    node = RabbitMQ(tmp_path_factory.mktemp("rabbitmq"))
    try:
        node.start()
        yield node
    finally:
        node.close()


@pytest.fixture(autouse=True)
def broker(
    node: RabbitMQ, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> RabbitMQ:
    """The node with empty queues, as the broker of all that the test starts."""
    with Connection(node.url) as connection:
        channel: Any = connection.default_channel
        for queue in Queue:
            channel.queue_declare(str(queue), durable=True, auto_delete=False)
            channel.queue_purge(str(queue))
    environment["CELERY_BROKER_URL"] = node.url
    monkeypatch.setenv("CELERY_BROKER_URL", node.url)
    return node


def in_state(state: JobState, stack: PromptStack, jobs: list[JobView]) -> int:
    return sum(stack.jobs.get(job.id).state is state for job in jobs)


def done(stack: PromptStack, jobs: list[JobView]) -> int:
    return in_state(JobState.SUCCEEDED, stack, jobs)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_broker_that_is_restarted_under_load_loses_and_doubles_nothing(
    how: str,
    broker: RabbitMQ,
    simulator: SimulatorProcess,
    start_worker: Callable[..., Process],
    stack: PromptStack,
) -> None:
    simulator.set_latency(0.5)
    worker = start_worker(WORKER_CONCURRENCY=str(SLOTS))
    jobs = [stack.jobs.enqueue_generation(f"Job {n}.", model="any-model") for n in range(JOBS)]
    wait_until(lambda: done(stack, jobs), "the first jobs to be done")
    getattr(broker, how)()
    during = stack.jobs.enqueue_generation("During the outage.", model="any-model")
    wait_until(lambda: not in_state(JobState.RUNNING, stack, jobs), "running jobs to end")
    before = done(stack, jobs)
    assert before < JOBS, "the broker was stopped too late"
    broker.start()
    back = time.monotonic()
    wait_until(lambda: done(stack, jobs) > before, "jobs to move again")
    if how == "stop":  # after a kill, messages may be gone, which are missed after 10 s
        assert time.monotonic() - back < BACK_SECONDS
    wait_until(lambda: done(stack, [*jobs, during]) == JOBS + 1, "all jobs to be done")
    assert len(simulator.ledger()) == JOBS + 1
    assert simulator.ledger(times=2) == {}
    assert worker.is_running
    assert "Traceback" not in worker.output()


def test_a_broker_that_hangs_holds_up_no_caller_and_is_used_again(
    broker: RabbitMQ, start_worker: Callable[..., Process], stack: PromptStack
) -> None:
    worker = start_worker()
    first = stack.jobs.enqueue_generation("before")
    wait_until(lambda: done(stack, [first]), "the worker to work")
    broker.send(signal.SIGSTOP)
    began = time.monotonic()
    during = [stack.jobs.enqueue_generation(f"during {n}") for n in range(20)]
    assert time.monotonic() - began < 20.0
    wait_until(lambda: "wait for the broker" in worker.output(), "the worker to notice")
    broker.send(signal.SIGCONT)
    wait_until(lambda: done(stack, during) == len(during), "all jobs to be done")
    assert worker.is_running


def test_a_worker_holds_one_message_for_each_slot(
    broker: RabbitMQ, start_worker: Callable[..., Process], stack: PromptStack
) -> None:
    start_worker(WORKER_CONCURRENCY="2")
    jobs = [stack.jobs.enqueue_generation(f"{n}", options={"delay_seconds": 120}) for n in range(5)]
    wait_until(lambda: in_state(JobState.RUNNING, stack, jobs) == 2, "both slots to be taken")
    assert stack.publisher.waiting(Queue.GENERATION) == 3


def test_monitors_hear_of_every_job(
    start_worker: Callable[..., Process], stack: PromptStack
) -> None:
    start_worker()
    heard: set[str] = set()
    with stack.celery.connection_for_read() as connection:
        receiver: Any = stack.celery.events.Receiver(
            connection, handlers={"task-succeeded": lambda event: heard.add(event["uuid"])}
        )
        bind = partial(Consumer, connection.default_channel)
        with receiver.get_consumers(bind, None)[0]:
            jobs = [stack.jobs.enqueue_generation(f"{n}") for n in range(50)]
            names = {str(job.id) for job in jobs}

            def all_heard() -> bool:
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.5)
                return names <= heard

            wait_until(all_heard, "the events of all jobs")
    results: list[Any] = [AsyncResult(name, app=stack.celery) for name in names]
    wait_until(lambda: {each.state for each in results} == {"SUCCESS"}, "Celery's own view")
