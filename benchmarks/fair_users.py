"""One user with many runs beside another with one: what each gets, second by second.

As many items each way. All are handed in before the workers start. `--limit` lets the provider's
rate limit be what is scarce, instead of the workers' slots; `--singles` hands in the first user's
items as single bulk jobs.

Run `python -m benchmarks.fair_users --help`.
"""

import argparse
import time
from uuid import UUID

from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from benchmarks.deployment import MODEL, Deployment, deployment
from promptstack.repositories.access_models import Tier
from promptstack.simulator.process import SimulatorProcess

LATENCY = 0.3
UNLIMITED = 1_000_000
LONGEST = 1_800.0


def main() -> None:
    """Hand all in, follow both users, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000, help="of each user")
    parser.add_argument("--runs", type=int, default=50, help="of the first user")
    parser.add_argument("--singles", action="store_true", help="bulk jobs in place of these runs")
    parser.add_argument("--limit", type=int, default=UNLIMITED, help="requests a minute")
    parser.add_argument("--in-flight", type=int, default=32, help="calls of a run in a worker")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=8, help="jobs at once in a worker")
    parser.add_argument("--tiers", nargs=2, type=Tier, default=[Tier.FREE, Tier.FREE])
    given = parser.parse_args()
    limits = (
        f'[[limits]]\nprovider = "openai"\nmodel = "*"\nrequests_per_minute = {given.limit}\n'
        "burst_seconds = 1\n"
    )
    concurrency = str(given.concurrency)
    with (
        SimulatorProcess(latency=LATENCY) as simulator,
        deployment(
            simulator.url, limits, LOG_LEVEL="WARNING", WORKER_CONCURRENCY=concurrency
        ) as deployed,
    ):
        users = [add_user(deployed, f"user-{at}", tier) for at, tier in enumerate(given.tiers)]
        first = hand_in_singles if given.singles else hand_in_runs
        first(deployed, users[0], given.items, given.runs, given.in_flight)
        hand_in_runs(deployed, users[1], given.items, 1, given.in_flight)
        deployed.start_workers(given.workers)
        curve = follow(deployed, users, given.items)
    show(curve, given.items)


def add_user(deployed: Deployment, name: str, tier: Tier) -> UUID:
    """Add a user of a tier."""
    with deployed.stack.ledger.transaction() as unit:
        return unit.users.create(email=f"{name}@example.com", tier=tier).id


def hand_in_runs(deployed: Deployment, user: UUID, items: int, runs: int, in_flight: int) -> None:
    """Start runs of so many items together."""
    for number in range(runs):
        count = items // runs + (number < items % runs)
        prompts = [{"prompt": f"Item {one} of run {number} of {user}"} for one in range(count)]
        deployed.stack.runs.generate(
            prompts, provider="openai", model=MODEL, in_flight=in_flight, user_id=user
        )


def hand_in_singles(
    deployed: Deployment, user: UUID, items: int, runs: int, in_flight: int
) -> None:
    """Enqueue so many bulk jobs."""
    deployed.enqueue(items, lambda one: f"Job {one} of {user}", user_id=user, bulk=True)


def follow(deployed: Deployment, users: list[UUID], items: int) -> list[list[int]]:
    """What each user has got by the end of each second, until both have all."""
    curve = [[0, 0]]
    began = time.monotonic()
    while min(curve[-1]) < items and time.monotonic() - began < LONGEST:
        time.sleep(max(0.0, began + len(curve) - time.monotonic()))
        with deployed.stack.ledger.transaction() as unit:
            rows = unit.session.execute(text(GOT)).all()
        got = {row[0]: int(row[1]) for row in rows}
        curve.append([got.get(user, 0) for user in users])
    return curve


GOT = """
SELECT user_id, sum(items) FROM (
    SELECT user_id, sum(succeeded) AS items FROM runs GROUP BY user_id
    UNION ALL
    SELECT user_id, count(*) FROM jobs
    WHERE run_id IS NULL AND state = 'succeeded' GROUP BY user_id
) AS both_kinds GROUP BY user_id
"""


def show(curve: list[list[int]], items: int) -> None:
    """Print some twenty lines of the curve, and the second user's share until one had all."""
    table = Table("seconds", "first: items/s", "second: items/s", "second's share", "")
    step = max(1, len(curve) // 20)
    for at in range(step, len(curve), step):
        one, other = (curve[at][user] - curve[at - step][user] for user in (0, 1))
        share = other / (one + other) if one + other else 0.0
        table.add_row(
            f"{at - step}-{at}", f"{one / step:,.0f}", f"{other / step:,.0f}", f"{share:.0%}",
            "#" * round(share * 12),
        )  # fmt: skip
    console = Console()
    console.print(table)
    end = next((at for at, got in enumerate(curve) if max(got) >= items), len(curve) - 1)
    of_second = curve[end][1] / max(1, sum(curve[end]))
    console.print(
        f"second's share until one of them had all ({end} s): {of_second:.0%}; both had all after "
        f"{len(curve) - 1} s: {sum(curve[-1]) / (len(curve) - 1):,.0f} items/s"
    )


if __name__ == "__main__":
    main()
