"""Whether this machine's worker is alive: `python -m promptstack.worker.health`, for containers."""

import socket
import sys
from datetime import UTC, datetime, timedelta

from promptstack.config.errors import PromptStackError
from promptstack.repositories.errors import TransientLedgerError
from promptstack.tasks.composition import PromptStack


def main() -> int:
    """Return 1 when the ledger has no fresh heartbeat from this machine.

    An outage of the ledger tells nothing about the worker. It may hold answers that were paid for,
    so it must not be ended for that.
    """
    try:
        with PromptStack.open() as stack, stack.ledger.transaction() as unit:
            timeout = timedelta(seconds=stack.settings.worker_lost_seconds)
            workers = unit.workers.get_many(hostname=socket.gethostname())
            alive = any(datetime.now(UTC) - worker.heartbeat_at < timeout for worker in workers)
    except TransientLedgerError as error:
        sys.stderr.write(f"Not known: {error}\n")
        return 0
    except PromptStackError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0 if alive else 1


if __name__ == "__main__":
    sys.exit(main())
