"""Ten runs at once of different users: whether all move, and when the smallest ends.

All are accepted before the one worker starts: else the first had it to themselves for a while.

Run `python -m benchmarks.fairness --help`.
"""

import argparse
import time
from dataclasses import dataclass, field
from uuid import UUID

from rich.console import Console
from rich.table import Table

from benchmarks.deployment import deployment
from benchmarks.own_runs import LIMITS, LOOK_SECONDS
from promptstack.simulator.process import SimulatorProcess

LATENCY = 0.2


@dataclass
class Followed:
    """A run of one user."""

    id: UUID
    items: int
    moved_at: float = field(default=float("nan"))
    ended_at: float = field(default=float("nan"))
    is_open: bool = True


def main() -> None:
    """Submit all, follow all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--smallest", type=int, default=2_000)
    parser.add_argument("--runs", type=int, default=10)
    given = parser.parse_args()
    with (
        SimulatorProcess(latency=LATENCY) as simulator,
        deployment(simulator.url, LIMITS, LOG_LEVEL="WARNING") as deployed,
    ):
        runs = deployed.stack.runs
        followed: list[Followed] = []
        for number in range(given.runs):
            is_last = number == given.runs - 1
            items = given.smallest if is_last else given.items
            with deployed.stack.ledger.transaction() as unit:
                user = unit.users.create(email=f"user-{number}@example.com").id
            texts = [f"Text {one} of user {number}" for one in range(items)]
            run = runs.embed(texts, provider="openai", in_flight=8, user_id=user)
            followed.append(Followed(run.id, items))
        deployed.start_workers(1)
        began = time.monotonic()
        while any(one.is_open for one in followed):
            time.sleep(LOOK_SECONDS)
            for one in followed:
                look(one, runs.get(one.id).succeeded, time.monotonic() - began)
    table = Table("run", "items", "first vector s", "done s")
    for number, one in enumerate(followed):
        table.add_row(str(number), f"{one.items:,}", f"{one.moved_at:.1f}", f"{one.ended_at:.1f}")
    Console().print(table)
    first_end = min(one.ended_at for one in followed)
    moved = sum(one.moved_at <= first_end for one in followed)
    place = sorted(one.ended_at for one in followed).index(followed[-1].ended_at) + 1
    Console().print(
        f"{moved} of {len(followed)} had moved when the first ended; the smallest, handed in last, "
        f"ended as number {place}"
    )


def look(one: Followed, succeeded: int, now: float) -> None:
    """Note when it first moved and when it was done."""
    if succeeded and one.moved_at != one.moved_at:
        one.moved_at = now
    if one.is_open and succeeded == one.items:
        one.ended_at, one.is_open = now, False


if __name__ == "__main__":
    main()
