"""Schemas that take long to judge by, in a real worker: others go on, and it stops."""

import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from promptstack.repositories.runs.models import RunState
from promptstack.services.validation.schema_bounds import SchemaBounds
from promptstack.tasks.composition import PromptStack
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
    runs: PromptStack, start_worker: Callable[..., Process]
) -> None:
    # Bounds that let it in, so that only time is left to end it.
    bounds = replace(SchemaBounds(), expanded=ALLOWED, judging_steps=ALLOWED, judging_seconds=0.1)
    runs.__dict__["_schema_bounds"] = bounds
    worker = start_worker(
        MAX_SCHEMA_EXPANDED=str(ALLOWED),
        MAX_JUDGING_STEPS=str(ALLOWED),
        MAX_JUDGING_SECONDS=str(bounds.judging_seconds),
        SHUTDOWN_GRACE_SECONDS="1",
    )
    slow = [
        runs.runs.generate(ITEMS, json_schema=bomb(), in_flight=40, reuse=False) for _ in range(2)
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
