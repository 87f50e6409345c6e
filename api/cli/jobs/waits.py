"""Jobs that wait for their time, in a line."""

from promptstack.api.cli.terminal import plural, printable, until
from promptstack.repositories.jobs.outbox import Waits


def describe(waits: Waits) -> str:
    """Say how many wait, until when, and for what."""
    first, last = until(waits.first_at), until(waits.last_at)
    when = first if first == last else f"{first} to {last}"
    return (
        f"{plural(waits.jobs, 'job')} of {printable(f'{waits.provider}/{waits.model}')} in {when}, "
        f"{waits.error_code}: {printable(waits.error or '')}"
    )
