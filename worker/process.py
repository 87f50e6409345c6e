"""A worker: a Celery consumer, an event loop with its jobs, and periodic threads."""

import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from celery.exceptions import SecurityWarning
from celery.signals import setup_logging, worker_ready, worker_shutting_down

from promptstack.config.names import Queue
from promptstack.repositories.errors import TransientLedgerError
from promptstack.services.execution.retrying_ledger import STOP_PATIENCE_SECONDS
from promptstack.services.maintenance.reconciler import Step
from promptstack.tasks.app import register_tasks
from promptstack.tasks.redis_publisher import RedisPublisher
from promptstack.tasks.settings_seen import record_settings
from promptstack.tasks.views.monitors import Monitors
from promptstack.tasks.worker_services import WorkerServices
from promptstack.worker.periodic import Periodic
from promptstack.worker.pool import CoroutinePool

logger = logging.getLogger(__name__)

SWITCH_SECONDS = 0.001
"""How long a thread may keep the others from running. At Python's 0.005, the threads that take
messages and talk to providers wait most of the time for threads that are in no hurry."""
GC_THRESHOLDS = (20_000, 20, 20)
"""Allocations before the youngest objects are searched for cycles, then rounds before older ones.
At Python's 700, 10, 10, running calls are searched again and again, and so was all that was loaded
at the start, which is frozen now. That was an eighth of the processor time of a generation."""
VIEWS_SECONDS = 0.05
"""Between two rounds of showing jobs in Redis: soon enough for a person."""
IDLE_VIEWS_SECONDS = 0.5
"""The same while nobody says that there is something to show."""
WOKEN_SECONDS = 0.05
"""Between two rounds of a step of the reconciler that is woken again and again."""
RECONNECT_SECONDS = 1.0
"""Between two tries to listen for new jobs, while PostgreSQL is away."""
RENEW_SECONDS = 5.0
"""Between two renewals of the leases of running calls. A lease lasts four times as long."""
EXIT_FAILED = 1
EXIT_HUNG = 70
CLOSING_SECONDS = 10.0
"""How long threads and connections may take to close after the last job."""


class WorkerProcess:
    """Consumes the job queues until it is told to stop."""

    def __init__(self, services: WorkerServices) -> None:
        self._services = services
        settings = services.settings
        self._concurrency = settings.worker_concurrency
        self._grace_seconds = settings.shutdown_grace_seconds
        self._is_stopping = False
        self._results: Any = services.celery.backend
        publisher = services.publisher
        # Another broker than Redis does not say who listens.
        tell = publisher.tell if isinstance(publisher, RedisPublisher) else None
        self._monitors = Monitors(tell)
        self._pool: CoroutinePool | None = None
        views = Periodic("views", self._show, VIEWS_SECONDS, idle_seconds=IDLE_VIEWS_SECONDS)
        self._wake_views = views.wake
        seconds = settings.reconcile_seconds
        steps = {step.name: _periodic(step, seconds) for step in services.reconciler.steps}
        services.webhook_sender.wake = steps["webhooks"].wake

        def wake_senders() -> None:
            steps["messages"].wake()
            steps["webhooks"].wake()

        hear = partial(services.new_jobs.hear, wake_senders)
        self._periodic = [
            Periodic("heartbeat", services.heartbeat.beat, settings.heartbeat_seconds),
            *steps.values(),
            Periodic("new jobs", hear, RECONNECT_SECONDS),
            views,
            Periodic("leases", self._renew_leases, RENEW_SECONDS),
        ]

    def run(self) -> int:
        """Work until SIGTERM or Ctrl-C. Returns the exit code.

        Then no job begins, running calls get the grace period, and what is left is handed back.
        """
        services = self._services
        sys.setswitchinterval(SWITCH_SECONDS)
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        register_tasks(
            services.celery,
            services.executor,
            services.sent_jobs,
            self._monitors,
            services.loop,
        )
        self._results.write_behind(self._wake_views)
        services.progress.write_behind(self._wake_views)
        # Before the first claim. Where there is no ledger, this raises a clear error.
        services.heartbeat.beat()
        record_settings(services, "worker")
        for periodic in self._periodic:
            periodic.start()
        worker_shutting_down.connect(self._shutting_down)
        setup_logging.connect(_keep_logging)
        worker_ready.connect(_take_signals)
        if os.geteuid() == 0:
            # Celery would say it in six lines.
            warnings.filterwarnings("ignore", category=SecurityWarning)
            logger.warning("this worker runs as root; give it a user of its own")
        consumer: Any = services.celery.Worker(
            pool=CoroutinePool,
            concurrency=self._concurrency,
            queues=[str(queue) for queue in Queue],
            hostname=f"{services.worker_id.hex[-12:]}@{socket.gethostname()}",
            loglevel=None,
            quiet=True,  # no banner: the log says what is needed
            # Workers find each other in the ledger.
            without_gossip=True,
            without_mingle=True,
        )
        self._monitors.watch(consumer)
        self._pool = pool = consumer.pool
        pool.most_jobs = lambda: services.job_slots.most_jobs
        logger.info(
            "worker %s (process %d) takes %d jobs at once",
            services.worker_id,
            os.getpid(),
            self._concurrency,
        )
        try:
            consumer.start()
            # Celery's own code where it gave up. Without a code, nobody told it to stop.
            return EXIT_FAILED if consumer.exitcode is None else int(consumer.exitcode)
        finally:
            worker_shutting_down.disconnect(self._shutting_down)
            services.new_jobs.stop()
            for periodic in self._periodic:
                periodic.stop()
            self._show()
            try:
                services.heartbeat.leave()
            except TransientLedgerError as error:
                logger.warning("the ledger was not told that this worker stops: %s", error)
            logger.info("worker %s has stopped", services.worker_id)

    def _show(self) -> None:
        """Show jobs in Redis as the ledger knows them."""
        if self._pool is not None:
            self._pool.tell_late_ends()
        self._services.progress.flush()
        self._results.catch_up()
        self._monitors.flush()

    def _renew_leases(self) -> None:
        self._services.loop.run(self._services.limiter.renew())

    def _shutting_down(self, how: str, **_: Any) -> None:
        is_urgent = self._is_stopping or how == "Cold"
        if is_urgent:
            logger.info("told to stop at once: running calls are handed back now")
        self._services.active_jobs.let_none_begin()
        grace_seconds = 0.0 if is_urgent else self._grace_seconds
        # In a thread, also at once: a signal's handler may have interrupted one that holds locks.
        _do_later(grace_seconds, self._services.active_jobs.stop)
        if is_urgent or not self._is_stopping:
            # This also covers the closing of connections, which may hang.
            _do_later(grace_seconds + STOP_PATIENCE_SECONDS + CLOSING_SECONDS, _leave_at_once)
        self._is_stopping = True


def _periodic(step: Step, seconds: float) -> Periodic:
    if step.is_woken:
        return Periodic(step.name, step.run, min(WOKEN_SECONDS, seconds), idle_seconds=seconds)
    return Periodic(step.name, step.run, seconds * step.rounds)


def _do_later(seconds: float, action: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


def _leave_at_once() -> None:
    """End a worker whose broker or threads hang. Its jobs are freed like those of a dead one."""
    logger.error("the worker did not stop in time and is ended; where its threads are:")
    faulthandler.dump_traceback()
    logging.shutdown()
    os._exit(EXIT_HUNG)


def _take_signals(**_: Any) -> None:
    """Take two signals from Celery.

    At SIGUSR1, print where the threads are: Celery would print their variables, prompts among them.
    At SIGHUP, stop as at SIGTERM: Celery would run the program anew in this process, in the middle
    of a shutdown too, and such a worker may hang.
    """
    faulthandler.register(signal.SIGUSR1)
    signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))


def _keep_logging(**_: Any) -> None:
    """Keep our logging: Celery sets up none of its own where this signal has a receiver."""
