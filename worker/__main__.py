"""Start a worker: `python -m worker`, or `promptstack worker`."""

import argparse
import sys

from config.errors import PromptStackError
from config.logging import configure_logging
from config.parent import die_with_parent
from config.settings import load_settings
from tasks.composition import PromptStack
from worker.process import WorkerProcess


def main() -> int:
    """Run one worker; the exit code."""
    parser = argparse.ArgumentParser(prog="promptstack worker")
    parser.add_argument(
        "--concurrency",
        dest="worker_concurrency",
        type=int,
        default=argparse.SUPPRESS,
        help="jobs at once (WORKER_CONCURRENCY)",
    )
    parser.add_argument("--with-parent", action="store_true", help="end when the starter ends")
    given = vars(parser.parse_args())
    if given.pop("with_parent"):
        die_with_parent()
    try:
        settings = load_settings(**given)
        configure_logging(settings)
        with PromptStack.open(settings) as stack:
            return WorkerProcess(stack).run()
    except PromptStackError as error:
        sys.stderr.write(f"promptstack worker: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
