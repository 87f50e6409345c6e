"""Whether the jobs of a long healthy backlog are published only once.

Jobs wait in the queue for many minutes behind two slow workers, far longer than any patience of the
reconciler. Run `python -m benchmarks.backlog --help`.
"""

import argparse
import sys
import time

from sqlalchemy import text

from benchmarks.deployment import MODEL, Deployment, deployment, wait_until
from promptstack.config.names import Queue
from promptstack.simulator.process import SimulatorProcess

MODELS = '[[limits]]\nprovider = "openai"\nrequests_per_minute = 1000000\nin_flight = 100\n'
"""No job waits for a limit: one that waits gives its message up, and gets another one later."""
LATENCY = 4.0
SLOTS = 4
WORKERS = 2
REPORT_SECONDS = 60.0

FILL = text(
    "INSERT INTO jobs (id, kind, queue, provider, model, request, request_hash, max_retries, "
    "expires_at) SELECT gen_random_uuid(), 'generation', 'generation', 'openai', :model, "
    "jsonb_build_object('provider', 'openai', 'model', CAST(:model AS text), "
    "'prompt', 'Question ' || n), md5(n::text), 3, now() + interval '1 day' "
    "FROM generate_series(1, :jobs) AS n"
)
REMEMBER = text("CREATE TABLE first_message AS SELECT id, rung_at, rung_epoch FROM jobs")
RUNG_AGAIN = text(
    "SELECT count(*) FROM jobs JOIN first_message USING (id) "
    "WHERE jobs.attempt = 0 AND jobs.rung_at IS DISTINCT FROM first_message.rung_at"
)
COUNT = text(
    "SELECT count(*) FILTER (WHERE state = 'queued'), count(*) FILTER (WHERE rung_at IS NULL), "
    "count(*) FILTER (WHERE attempt > 0) FROM jobs"
)


def main() -> int:
    """Fill the queue, wait, and count the messages; 1 where a job was published twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=10.0)
    given = parser.parse_args()
    with (
        SimulatorProcess(latency=LATENCY) as simulator,
        deployment(simulator.url, MODELS, WORKER_CONCURRENCY=str(SLOTS)) as deployed,
    ):
        with deployed.stack.ledger.transaction() as unit:
            unit.session.execute(FILL, {"jobs": given.jobs, "model": MODEL})
        deployed.start_workers(WORKERS)
        wait_until(lambda: _counts(deployed)[1] == 0, 600.0)
        with deployed.stack.ledger.transaction() as unit:
            unit.session.execute(REMEMBER)
        began = time.monotonic()
        while (left := given.minutes * 60 - (time.monotonic() - began)) > 0:
            time.sleep(min(left, REPORT_SECONDS))
            waiting, _, taken = _counts(deployed)
            _say(f"{time.monotonic() - began:5.0f} s: {waiting:,} queued, {taken:,} taken")
        return _judge(deployed, given.jobs)


def _judge(deployed: Deployment, jobs: int) -> int:
    messages = deployed.stack.publisher.waiting(Queue.GENERATION)
    with deployed.stack.ledger.transaction() as unit:
        again = int(unit.session.scalar(RUNG_AGAIN) or 0)
    waiting, _, taken = _counts(deployed)
    # Each worker may have taken a few messages off the queue that it hasn't claimed yet.
    surplus = messages - waiting
    _say(
        f"{jobs:,} jobs: {waiting:,} queued, {taken:,} taken; {messages:,} messages wait; "
        f"{again} published again, {max(0, surplus)} messages too many"
    )
    return int(again > 0 or surplus > 0)


def _counts(deployed: Deployment) -> tuple[int, int, int]:
    with deployed.stack.ledger.transaction() as unit:
        row = unit.session.execute(COUNT).one()
        return row[0], row[1], row[2]


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
