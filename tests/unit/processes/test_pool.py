"""Celery's log of how long a task took."""

import logging
from contextvars import copy_context

from promptstack.worker.pool import RUNTIME, _tell_runtime


def logged(runtime: float) -> object:
    record = logging.LogRecord("celery.app.trace", logging.INFO, "", 0, "", None, None)
    record.args = {"runtime": runtime}
    assert _tell_runtime(record)
    return record.args["runtime"]


def test_a_job_took_as_long_as_its_coroutine() -> None:
    def tell() -> object:
        RUNTIME.set(2.5)
        return logged(0.001)

    assert copy_context().run(tell) == 2.5


def test_a_task_of_celery_s_own_took_what_celery_has_measured() -> None:
    assert copy_context().run(logged, 0.25) == 0.25


def test_other_records_are_left_alone() -> None:
    record = logging.LogRecord("celery.app.trace", logging.INFO, "", 0, "%s", ("runtime",), None)
    assert _tell_runtime(record)
    assert record.getMessage() == "runtime"
