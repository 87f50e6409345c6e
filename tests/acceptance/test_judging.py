"""Schemas that take long to judge by, in a real worker: others go on, and it stops."""

import signal
from collections.abc import Callable
from typing import Any

from promptstack.repositories.run_models import RunState
from promptstack.tasks.worker_services import WorkerServices
from tests.processes import Process, wait_until
from tests.runs import ended, failures, in_ledger, prompts

LEVELS = 22
"""Judging doubles with each: this would take half an hour an answer."""
ALLOWED = 10**9
ITEMS = [f"[unfit] {n}" for n in range(40)]


def bomb() -> dict[str, Any]:
    """Holds for the null that the simulator answers, and says so last."""
    definitions: dict[str, Any] = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(LEVELS)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{LEVELS}": {"maxLength": 5}}}


def test_runs_that_take_long_to_judge_hold_up_nobody(
    runs: WorkerServices, start_worker: Callable[..., Process]
) -> None:
    # Bounds that let it in, so that only time is left to end it.
    bounds = {
        "max_schema_expanded": ALLOWED,
        "max_judging_steps": ALLOWED,
        "max_judging_seconds": 0.1,
    }
    worker = start_worker(
        SHUTDOWN_GRACE_SECONDS="1",
        **{name.upper(): str(value) for name, value in bounds.items()},
    )
    with WorkerServices.open(runs.settings.model_copy(update=bounds)) as caller:
        slow = [
            caller.runs.generate(ITEMS, json_schema=bomb(), in_flight=40, reuse=False)
            for _ in range(2)
        ]
    wait_until(
        lambda: all(runs.runs.get(run.id).failed for run in slow),
        "answers that were not judged",
        90.0,
    )
    others = ended(runs, runs.runs.generate(prompts(20), max_tokens=16))
    assert (others.state, others.succeeded) == (RunState.COMPLETED, 20)

    worker.send(signal.SIGTERM)
    assert worker.wait(60.0) == 0
    for run in slow:
        assert set(failures(runs, run).values()) == {"ANSWER_NOT_JUDGED"}
    # What was paid for is on the books, and no more of it than was asked for once.
    unknown = "SELECT count(*) FROM attempts WHERE billing = 'unknown' OR cost_usd IS NULL"
    assert in_ledger(runs, unknown) == 0
