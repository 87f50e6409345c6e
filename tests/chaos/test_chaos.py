"""A small run of all that can go wrong, always the same one; the full one is `make chaos`.

On one processor, which two busy loops want too: what is right only where there is time is wrong.
"""

from pathlib import Path

from promptstack.chaos.local_deployment import run_on_local
from promptstack.chaos.neighbours import slow_machine
from promptstack.chaos.plan import Fault


def test_nothing_is_lost_or_doubled_under_fire(tmp_path: Path) -> None:
    said: list[str] = []
    with slow_machine(processors=1, busy_loops=2):
        scorecard = run_on_local(
            seed=7,
            jobs=200,
            items=100,
            seconds=20.0,
            kills=6,
            times=1,
            clients=30,
            # Less than half of the usual, and all that lasts is as much shorter.
            lost_seconds=5.0,
            folder=tmp_path,
            say=said.append,
        )
    report = "\n".join([*said, *scorecard.lines()])
    assert scorecard.passed, report
    assert scorecard.verdict.accepted == scorecard.verdict.ended["succeeded"] == 200, report
    assert scorecard.batch is not None
    assert (scorecard.batch.items, scorecard.batch.succeeded) == (100, 100), report
    assert scorecard.faults == dict.fromkeys(Fault, 1) | {Fault.KILL: 6}, report
