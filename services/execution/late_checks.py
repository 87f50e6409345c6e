"""Checks jobs that were stored unchecked: our checks don't run in SQL, nor in another's Celery.

A worker makes them after it has claimed such a job and before any call. What the caller left out is
filled in then: the provider, the model, the retries, the deadline.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.jobs.unchecked_jobs import CheckedJob
from promptstack.repositories.models import JobKind
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import InvalidInput
from promptstack.services.execution.retrying_ledger import RetryingLedger
from promptstack.services.jobs.checks import JobChecks
from promptstack.services.jobs.entries import EmbeddingEntry, GenerationEntry
from promptstack.services.jobs.new_job import JobDefaults, NewJob
from promptstack.services.text import check_storable_json, shown_name

NOT_SAID = frozenset({"user_id", "api_key_id", "key_limits", "idempotency_key", "bulk"})
"""What such a request doesn't say: whose it is follows from the way by which it came."""
_OF_GENERATIONS = GenerationEntry.__required_keys__ | GenerationEntry.__optional_keys__
_OF_EMBEDDINGS = EmbeddingEntry.__required_keys__ | EmbeddingEntry.__optional_keys__
NAMES = {
    JobKind.GENERATION: _OF_GENERATIONS - NOT_SAID,
    JobKind.EMBEDDING: _OF_EMBEDDINGS - NOT_SAID,
}
"""What can be said of a job of each kind."""


class LateChecks:
    """Checks claimed jobs."""

    def __init__(self, ledger: RetryingLedger, checks: JobChecks, defaults: JobDefaults) -> None:
        self._ledger = ledger
        self._checks = checks
        self._defaults = defaults

    async def check(self, claim: Claim) -> Claim:
        """Store what the checks make of the job; the claim with it.

        Raises `InvalidInput` and what else `JobChecks` raises, and `ClaimLost`.
        """
        new = await asyncio.to_thread(self._checked, claim)
        return await self._ledger.write_async(lambda unit: self._store(unit, claim, new))

    def _checked(self, claim: Claim) -> NewJob:
        if not claim.is_readable:
            raise InvalidInput(
                "The request can't be read: it has a number of thousands of digits, or is nested "
                "thousands of levels deep."
            )
        check_storable_json(claim.request, "The request")
        checks = self._checks.of_call(None)
        check = checks.embedding if claim.kind is JobKind.EMBEDDING else checks.generation
        entry: Any = {**known(claim.request, NAMES[claim.kind]), "user_id": claim.user_id}
        return check(entry)

    def _store(self, unit: UnitOfWork, claim: Claim, new: NewJob) -> Claim:
        request = new.written
        if new.document is not None:
            created_at = unit.unchecked_jobs.created_at(claim)
            document_id = unit.documents.put_as_of(new.document, created_at)
            request = json.dumps({**new.body, "document_id": str(document_id)})
        said, defaults = new.options, self._defaults
        checked = CheckedJob(
            provider=new.provider,
            model=new.model,
            request=request,
            max_retries=defaults.max_retries if said.max_retries is None else said.max_retries,
            tags=said.tags,
            webhook=None if said.webhook is None else said.webhook.url,
            lifetime=said.expires_in or defaults.expires_seconds,
        )
        seconds_left = unit.unchecked_jobs.store(claim, checked)
        return replace(
            claim,
            provider=checked.provider,
            model=checked.model,
            request=json.loads(request),
            max_retries=checked.max_retries,
            seconds_left=seconds_left,
            is_checked=True,
        )


def known(request: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """What a request says. Raises `InvalidInput`, which names what nobody knows."""
    unknown = sorted(set(request) - names)
    if unknown:
        shown = ", ".join(map(shown_name, unknown[:5]))
        raise InvalidInput(f"Nothing of these names can be said of the job: {shown}. Leave it out.")
    return dict(request)
