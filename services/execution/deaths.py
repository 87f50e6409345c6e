"""Jobs whose workers die: their calls are made smaller, until the content that does it is alone."""

from collections.abc import Sequence
from math import ceil, log2

from promptstack.repositories.jobs.records import Claim
from promptstack.services.errors import WorkersLost
from promptstack.services.execution.content_calls import Call, Content

LONGEST_SEARCH = 12
"""So many deaths halve the largest call, of 2,048 texts, down to one text."""


def calls_of(claim: Claim, batches: Sequence[Sequence[Content]]) -> list[Call]:
    """Make calls of what was packed, and halve them at each death from the second one on.

    So the content that kills workers is alone in the end. Those before it are embedded, and with
    that the count of deaths begins anew. Raises `WorkersLost` if a content that is alone has met
    more deaths than the job has retries.
    """
    largest = max(map(len, batches), default=1)
    check_deaths(claim, 0 if largest == 1 else 1 + ceil(log2(largest)))
    size = max(1, largest >> max(0, claim.deaths - 1))
    return [part for batch in batches for part in Call(batch, claim.failures).split(size)]


def check_deaths(claim: Claim, search: int) -> None:
    """Raise `WorkersLost` if there are more deaths than retries, without those of the `search`."""
    if claim.deaths > search + claim.max_retries:
        raise WorkersLost(
            f"{claim.deaths} workers died one after the other while they ran this job: it is not "
            "tried again by itself, as it may be what ends workers."
        )
