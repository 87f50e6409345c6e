"""Celery's log of how long a task took."""

import logging
from collections import deque
from contextvars import copy_context

from promptstack.config.names import TaskName
from promptstack.worker.pool import RUNTIME, CoroutinePool, _Message, _tell_runtime


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


def pool_of_two() -> CoroutinePool:
    pool = CoroutinePool.__new__(CoroutinePool)
    pool.most_jobs = lambda: 2
    pool._ended, pool._running, pool._waiting = deque(), set(), deque()
    return pool


def begin(pool: CoroutinePool, tasks: list[TaskName]) -> list[TaskName]:
    """Let these messages come; those that begin."""
    for task in tasks:
        pool._waiting.append(
            _Message(lambda: (0, None, 0.0), (task,), lambda *_: None, lambda _: None)
        )
    begun = []
    while (one := pool._next()) is not None:
        pool._running.add(one)
        begun.append(one.args[0])
    return begun


def test_maintenance_has_slots_of_its_own() -> None:
    """Where jobs hold all slots, two tasks of maintenance begin, and no other job."""
    pool = pool_of_two()
    begun = begin(pool, [TaskName.GENERATE_TEXT] * 3 + [TaskName.RUN_OPERATION] * 3)
    assert begun == [TaskName.GENERATE_TEXT] * 2 + [TaskName.RUN_OPERATION] * 2
    assert not pool.has_room_for_maintenance_alone
    assert len(pool._waiting) == 2


def test_files_of_batches_take_no_slot_of_maintenance() -> None:
    """Reading one takes minutes, and a user may make many batches at once."""
    pool = pool_of_two()
    begun = begin(pool, [TaskName.TAKE_BATCH_IN] * 4 + [TaskName.RUN_OPERATION])
    assert begun == [TaskName.TAKE_BATCH_IN] * 2 + [TaskName.RUN_OPERATION]
