"""Operations as callers use them: start one, look at it, wait for it."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from uuid import UUID

from promptstack.config.names import Queue
from promptstack.repositories.idempotency import KeyedRequest
from promptstack.repositories.jobs.operations import CHANGED_STATES
from promptstack.repositories.jobs.records import JobFilter, NewJobRow
from promptstack.repositories.models import JobKind, JobState, new_id
from promptstack.repositories.operation_models import OperationAction
from promptstack.repositories.pages import FIRST_PAGE, Page, PageQuery
from promptstack.repositories.session import Ledger
from promptstack.services.audit.actor import Actor
from promptstack.services.errors import NotFound, WrongState
from promptstack.services.idempotency.claims import claim
from promptstack.services.jobs.filters import checked_filter
from promptstack.services.jobs.publishing import JobMessage, Publisher, publish_now
from promptstack.services.operations.views import OperationRequest, OperationView
from promptstack.services.validation.ids import read_id, read_owner

PROVIDER = "ledger"
"""What stands for a provider in an operation's job: it asks nobody."""
RETRIES = 5
POLL_SECONDS = 0.1
OF_CALLER = {"user_id", "api_key_id"}
"""Fields of a filter that say who asks."""


class OperationService:
    """Starts operations and answers for them. A worker does them."""

    def __init__(self, ledger: Ledger, publisher: Publisher, *, expires_seconds: float) -> None:
        self._ledger = ledger
        self._expires_seconds = expires_seconds
        self._publish = partial(publish_now, ledger, publisher)

    def start(
        self,
        action: OperationAction | str,
        wanted: JobFilter,
        *,
        actor: Actor | None = None,
        user_id: UUID | None = None,
        keyed: KeyedRequest | None = None,
    ) -> OperationView:
        """Retry or cancel all jobs that a filter matches and that were accepted until now.

        A retry without a state is of failed jobs; a cancel, of queued and running ones. It belongs
        to the user `user_id`. Raises `InvalidInput`, and `WrongState` for a state that the action
        can't change.
        """
        action = OperationAction(action)
        wanted = checked_filter(wanted)
        if action is OperationAction.RETRY and wanted.state is None:
            wanted = replace(wanted, state=JobState.FAILED)
        if wanted.state is not None and wanted.state not in CHANGED_STATES[action]:
            states = ", ".join(CHANGED_STATES[action])
            raise WrongState(f"No {wanted.state} job can be changed by a {action}; only {states}.")
        request = OperationRequest(action=action, wanted=wanted, actor=actor)
        operation_id = new_id()
        with self._ledger.transaction() as unit:
            made = claim(unit, keyed, operation_id)
            if made is None:
                row = self._row(operation_id, request, user_id)
                created_at = unit.new_jobs.add([row])[operation_id].created_at
                said = request.model_dump(mode="json")["wanted"]
                shown = {k: v for k, v in said.items() if v is not None and k not in OF_CALLER}
                unit.operations.add(operation_id, action, shown)
                message = JobMessage(
                    row.id, row.kind, row.queue, row.provider, row.model, 0, created_at
                )
                unit.after_commit(self._publish, message)
        return self.get(made or operation_id)

    def _row(
        self, operation_id: UUID, request: OperationRequest, user_id: UUID | None
    ) -> NewJobRow:
        return NewJobRow(
            id=operation_id,
            kind=JobKind.OPERATION,
            queue=Queue.MAINTENANCE,
            provider=PROVIDER,
            model=request.action,
            request=request.model_dump_json(),
            request_hash="",
            user_id=user_id,
            api_key_id=None,
            idempotency_key=None,
            max_retries=RETRIES,
            lifetime=self._expires_seconds,
            webhook=None,
        )

    def get(self, operation_id: UUID | str, *, owner: UUID | None = None) -> OperationView:
        """Return an operation; with `owner`, only one of that user's. Raises `NotFound`."""
        with self._ledger.transaction() as unit:
            found = unit.operations.find(read_id(operation_id, "operation"))
            if found is None or (owner is not None and found.job.user_id != owner):
                raise NotFound(f"There is no operation {operation_id}.")
            return OperationView.of(found)

    def get_page(
        self, owner: UUID | None = None, asked: PageQuery = FIRST_PAGE
    ) -> Page[OperationView]:
        """Return a page of operations, newest first."""
        with self._ledger.transaction() as unit:
            return unit.operations.page_of(read_owner(owner), asked).of(OperationView.of)

    def follow(
        self, operation_id: UUID | str, timeout: float = math.inf
    ) -> Iterator[OperationView]:
        """Return an operation again and again until it has ended, or the time is over."""
        deadline = time.monotonic() + timeout
        while True:
            found = self.get(operation_id)
            yield found
            if found.state.is_final or time.monotonic() >= deadline:
                return
            time.sleep(POLL_SECONDS)
