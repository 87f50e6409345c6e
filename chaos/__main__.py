"""`python -m promptstack.chaos`: a local deployment under fire, which it starts and ends."""

import argparse
import json
import signal
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from promptstack.chaos.local_deployment import LATENCY_SECONDS, run_on_local
from promptstack.chaos.neighbours import slow_machine


def main() -> int:
    """Run and print the score; the exit code is 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m promptstack.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=5_000, help="of a run beside the jobs")
    parser.add_argument("--seconds", type=float, default=440.0, help="for load and faults")
    parser.add_argument("--kills", type=int, default=125)
    parser.add_argument("--times", type=int, default=5, help="of each other fault")
    parser.add_argument("--clients", type=int, default=0, help="that send the jobs by HTTP")
    parser.add_argument("--latency", type=float, default=LATENCY_SECONDS, help="the provider's")
    parser.add_argument("--processors", type=int, help="use only so many of this machine's")
    parser.add_argument("--busy", type=int, default=0, help="busy loops beside it")
    parser.add_argument("--logs", type=Path, help="folder for the workers' logs")
    parser.add_argument("--json", type=Path, help="file for the score as JSON")
    parser.add_argument("--against", choices=["celery"], help="run this rival instead")
    given = parser.parse_args()
    # As Ctrl-C: what was started is ended, whoever ends us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = given.logs or Path(tempfile.mkdtemp(prefix="promptstack-chaos-logs-"))
    folder.mkdir(parents=True, exist_ok=True)
    plan = {name: getattr(given, name) for name in ("seed", "jobs", "seconds", "kills", "times")}
    with slow_machine(processors=given.processors, busy_loops=given.busy):
        if given.against:
            # Rivals are in the repository, not in the wheel.
            score = import_module("benchmarks.celery_under_fire").run(**plan, folder=folder)
        else:
            score = run_on_local(
                **plan,
                items=given.items,
                clients=given.clients,
                latency_seconds=given.latency,
                folder=folder,
                say=_say,
            )
    for line in score.lines():
        _say(line)
    if given.json:
        given.json.write_text(json.dumps(score.as_json(), indent=2))
    return 0 if score.passed else 1


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
