"""Jobs that another service's Celery has sent, the request in the message (docs/celery.md)."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from promptstack.repositories.jobs.celery_messages import SentJob
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import InvalidInput
from promptstack.services.execution.retrying_ledger import RetryingLedger
from promptstack.services.text import check_storable_json

MOST_BYTES = 64_000_000
"""Of a request. It is stored before it is checked, as in SQL."""


class SentJobs:
    """Keeps them in the ledger, and what their callers wait for until they were told the end."""

    def __init__(self, ledger: RetryingLedger, user: str | None) -> None:
        """Take the e-mail of the user whose jobs they are; None: nobody's."""
        self._ledger = ledger
        self._user = user

    async def store(self, job: SentJob) -> None:
        """Store a job, unless its message has come before. It is checked later.

        Raises `InvalidInput` for one that can't be stored, and `TransientLedgerError` where this
        worker stops while the ledger is away.
        """
        await asyncio.to_thread(_check, job)
        await self._ledger.write_async(
            lambda unit: unit.celery_messages.add(job, self._user_id(unit))
        )

    async def take(self, job_id: UUID) -> Mapping[str, Any] | None:
        """What Celery does now that a job has ended; None if another worker tells it."""
        return await self._ledger.write_async(lambda unit: unit.celery_messages.take(job_id))

    async def told(self, job_id: UUID) -> None:
        """Celery was told the end."""
        await self._ledger.write_async(lambda unit: unit.celery_messages.told(job_id))

    def _user_id(self, unit: UnitOfWork) -> UUID | None:
        if self._user is None:
            return None
        user = unit.users.get_by_email(self._user)
        if user is None or user.disabled_at is not None:
            raise InvalidInput(
                "The user to whom jobs sent by Celery belong is not there or is disabled. The "
                "operator has to name another one in CELERY_USER."
            )
        return user.id


def _check(job: SentJob) -> None:
    """Raise `InvalidInput` where it can't be stored. It takes seconds for tens of megabytes."""
    for given, what in ((job.request, "The request"), (job.options, "What follows the task")):
        check_storable_json(dict(given), what)
        size = len(json.dumps(given, ensure_ascii=False).encode())
        if size > MOST_BYTES:
            raise InvalidInput(
                f"{what} has {size:,} bytes; at most {MOST_BYTES:,} are accepted. Split it."
            )
