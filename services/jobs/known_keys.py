"""Jobs whose idempotency keys are sent again."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

from promptstack.repositories.errors import LedgerConflict
from promptstack.repositories.models import Job
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import IdempotencyConflict
from promptstack.services.jobs.new_job import NewJob

Known = dict[tuple[UUID | None, str], Job]
"""The jobs that are there, by user and key."""


def find_known(work: UnitOfWork, jobs: Sequence[NewJob]) -> Known:
    """The jobs that are there of the keys of these, by user and key."""
    keys: dict[UUID | None, set[str]] = defaultdict(set)
    ours = {job.id for job in jobs}
    for job in jobs:
        if job.key:
            keys[job.key[0]].add(job.key[1])
    return {
        (user_id, str(job.idempotency_key)): job
        for user_id, its_keys in keys.items()
        for job in work.jobs.find_by_idempotency_keys(user_id, its_keys)
        if job.id not in ours
    }


def check_same(new: NewJob, known: Known) -> Job | None:
    """The job that is there of the key of this one, if any. Raises `IdempotencyConflict`."""
    job = known.get(new.key) if new.key else None
    if job is not None and job.request_hash != new.request_hash:
        raise IdempotencyConflict(
            f"{new.place}The idempotency key was used for another request (job {job.id}); "
            "send a new key for a new request."
        )
    return job


@contextmanager
def explained() -> Iterator[None]:
    """Say what somebody else's transaction holds."""
    try:
        yield
    except LedgerConflict as error:
        raise LedgerConflict(
            "Another transaction is not over that has used the same idempotency key, or the same "
            "source; try again once it is."
        ) from error
