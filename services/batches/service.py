"""Batches as callers use them: make one, look at it, cancel it, try again what failed."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Unpack
from uuid import UUID

from promptstack.config.names import Queue
from promptstack.repositories.batch_models import Batch, BatchDoor, BatchState
from promptstack.repositories.idempotency import KeyedRequest
from promptstack.repositories.jobs.records import NewJobRow
from promptstack.repositories.models import JobKind, new_id
from promptstack.repositories.pages import FIRST_PAGE, Page, PageQuery
from promptstack.repositories.run_models import RunState
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.access.caller import OwnerKeywords
from promptstack.services.access.key_terms import check_came_with
from promptstack.services.batches.forms import LineForms
from promptstack.services.batches.requests import (
    BatchBounds,
    check_input,
    checked_metadata,
    window_seconds,
)
from promptstack.services.batches.views import BatchView
from promptstack.services.errors import InvalidInput, NotFound, NotYet, WrongState
from promptstack.services.files.service import FileService
from promptstack.services.idempotency.claims import claim
from promptstack.services.jobs.publishing import JobMessage, Publisher, publish_now
from promptstack.services.runs.ended import SOON_SECONDS, EndedRuns
from promptstack.services.runs.lifecycle import RunLifecycle
from promptstack.services.validation.ids import check_user

PROVIDER = "ledger"
"""What stands for a provider in a batch's job: it asks nobody."""
RETRIES = 5
LATE_SECONDS = 30 * 86_400.0
"""How long after a batch's window its file is still read: every line ends in an output."""


class BatchService:
    """Accepts batches and answers for them. Workers take their files in and end them."""

    def __init__(
        self,
        ledger: Ledger,
        publisher: Publisher,
        files: FileService,
        runs: EndedRuns,
        lifecycle: RunLifecycle,
        *,
        forms: LineForms,
        bounds: BatchBounds,
    ) -> None:
        self._ledger = ledger
        self._files = files
        self._runs = runs
        self._lifecycle = lifecycle
        self._forms = forms
        self._bounds = bounds
        self._publish = partial(publish_now, ledger, publisher)

    def create(
        self,
        input_file_id: UUID,
        endpoint: str,
        completion_window: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        door: BatchDoor = BatchDoor.OPENAI,
        outputs_kept_seconds: int | None = None,
        keyed: KeyedRequest | None = None,
        **owner: Unpack[OwnerKeywords],
    ) -> BatchView:
        """Accept a batch; its file is read later. Raises `InvalidInput`.

        The same request within some seconds is the same batch: clients send it again when they
        have missed the answer. A request with an idempotency key is known by that alone.
        """
        seconds = window_seconds(completion_window)
        if endpoint not in self._forms[door].endpoints:
            known = ", ".join(sorted(self._forms[door].endpoints))
            raise InvalidInput(f"The endpoint must be one of {known}.", pointer="/endpoint")
        values = {
            "user_id": owner["user_id"],
            "api_key_id": owner["api_key_id"],
            "door": door,
            "input_file_id": input_file_id,
            "endpoint": endpoint,
            "completion_window": completion_window,
            "attributes": checked_metadata(metadata),
            "outputs_kept_seconds": outputs_kept_seconds,
        }
        try:
            check_input(self._files.get(input_file_id, owner["user_id"]), self._bounds)
        except NotFound as error:
            raise InvalidInput(str(error), pointer="/input_file_id") from error
        batch_id, job_id = new_id(), new_id()
        with self._ledger.transaction() as unit:
            check_user(unit, owner["user_id"])
            made = claim(unit, keyed, batch_id)
            if made is None and keyed is None:
                repeated = unit.batches.repeated(values, self._bounds.repeat_seconds)
                made = None if repeated is None else repeated.id
            if made is None:
                batch = unit.batches.add(id=batch_id, job_id=job_id, lifetime=seconds, **values)
                self._add_job(unit, batch)
        return self.get(made or batch_id)

    def _add_job(self, unit: UnitOfWork, batch: Batch) -> None:
        row = NewJobRow(
            id=batch.job_id,
            kind=JobKind.BATCH,
            queue=Queue.MAINTENANCE,
            provider=PROVIDER,
            model=JobKind.BATCH,
            request=f'{{"batch_id": "{batch.id}"}}',
            request_hash="",
            user_id=batch.user_id,
            api_key_id=batch.api_key_id,
            idempotency_key=None,
            max_retries=RETRIES,
            lifetime=batch.window_seconds + LATE_SECONDS,
            webhook=None,
        )
        accepted = unit.new_jobs.add([row])[row.id]
        message = JobMessage(
            row.id, row.kind, row.queue, row.provider, row.model, 0, accepted.created_at
        )
        unit.after_commit(self._publish, message)

    def get(
        self, batch_id: UUID, owner: UUID | None = None, door: BatchDoor | None = None
    ) -> BatchView:
        """Return a batch; with `owner`, only one of that user's. Raises `NotFound`."""
        with self._ledger.transaction() as unit:
            found = unit.batches.find(batch_id)
            if found is None or not _is_of(found.batch, owner, door):
                raise NotFound(f"There is no batch {batch_id}.")
            return BatchView.of(found)

    def get_page(
        self,
        owner: UUID | None,
        asked: PageQuery = FIRST_PAGE,
        door: BatchDoor = BatchDoor.OPENAI,
    ) -> Page[BatchView]:
        """Return a page of a user's batches, newest first."""
        with self._ledger.transaction() as unit:
            return unit.batches.page_of(owner, door, asked).of(BatchView.of)

    def cancel(
        self, batch_id: UUID, owner: UUID | None = None, door: BatchDoor | None = None
    ) -> BatchView:
        """Stop a batch and keep its results. A worker ends it when no call is under way any more.

        One whose file is still to be read is read all the same, so that every line ends in an
        output. One that is being cancelled or is cancelled is returned as it is. Raises `NotFound`
        and `WrongState`.
        """
        self.get(batch_id, owner, door)
        with self._ledger.transaction() as unit:
            batch = unit.batches.lock(batch_id)
            if batch is None:
                raise NotFound(f"There is no batch {batch_id}.")
            if batch.ended_at is not None:
                if batch.state != BatchState.CANCELLED:
                    raise WrongState(f"The batch has ended already: it is {batch.state}.")
                return BatchView.of(unit.batches.find(batch_id) or _gone(batch_id))
            if batch.cancelling_at is None:
                unit.batches.change(batch_id, cancelling_at=unit.now())
            run_id = batch.run_id if batch.state == BatchState.IN_PROGRESS else None
        if run_id is not None:
            self._lifecycle.end(run_id, RunState.CANCELLED)
        return self.get(batch_id)

    def retry(
        self,
        batch_id: UUID,
        owner: UUID | None = None,
        door: BatchDoor | None = None,
        *,
        only_key: UUID | None = None,
    ) -> BatchView:
        """Try again the requests of an ended batch that have no answer, within a new window.

        What was answered is not paid for again. With `only_key` it must have come with that API
        key. Raises `NotFound`, `NotPermitted`, `NotYet` and
        `WrongState`.
        """
        found = self.get(batch_id, owner, door)
        if found.ended_at is None:
            if found.cancelling_at is not None:
                raise NotYet(
                    "The batch is being cancelled; try again in a while.", retry_after=SOON_SECONDS
                )
            raise WrongState(f"The batch goes on: it is {found.status}.")
        if found.in_progress_at is not None and found.run_id is not None:
            self._runs.retry(found.run_id, owner, only_key=only_key)
            return self.get(batch_id)
        if found.errors:
            raise WrongState(
                "The batch has no valid input, so there is nothing to try again; upload a mended "
                "file and make a new batch."
            )
        with self._ledger.transaction() as unit:
            batch = unit.batches.lock(batch_id)
            if batch is not None and batch.ended_at is not None:
                check_came_with(batch.api_key_id, only_key)
                unit.batches.validate_again(batch_id, new_id())
                unit.session.refresh(batch)
                self._add_job(unit, batch)
        return self.get(batch_id)

    def delete(
        self,
        batch_id: UUID,
        owner: UUID | None = None,
        door: BatchDoor | None = None,
        *,
        only_key: UUID | None = None,
    ) -> None:
        """Delete a batch that has ended, with its run, its outputs and its own input file.

        Raises `NotFound`, `NotPermitted`, `NotYet` and `WrongState`.
        """
        found = self.get(batch_id, owner, door)
        with self._ledger.transaction() as unit:
            # A run is always locked before its batch.
            run = None if found.run_id is None else unit.runs.lock(found.run_id)
            batch = unit.batches.lock(batch_id)
            if batch is None:
                raise NotFound(f"There is no batch {batch_id}.")
            if batch.ended_at is None or batch.run_id != found.run_id:
                raise WrongState("The batch goes on; cancel it, and delete it when it has ended.")
            check_came_with(batch.api_key_id, only_key)
            if run is not None:
                if unit.run_maintenance.is_busy(run.id):
                    raise NotYet(
                        "The batch has ended, and its last calls are not over yet; try again in a "
                        "while.",
                        retry_after=SOON_SECONDS,
                    )
                unit.run_maintenance.drop(run.id, drops_vectors=True)
            unit.batches.delete(batch)
            unit.files.mark_outputs_deleted(batch_id)
            # What clients have uploaded is theirs to delete; this door's was made with the batch.
            if batch.door == BatchDoor.ANTHROPIC and not unit.batches.reads(batch.input_file_id):
                unit.files.mark_deleted(batch.input_file_id, batch.user_id)


def _is_of(batch: Batch, owner: UUID | None, door: BatchDoor | None) -> bool:
    return (owner is None or batch.user_id == owner) and (door is None or batch.door == door)


def _gone(batch_id: UUID) -> Any:
    raise NotFound(f"There is no batch {batch_id}.")
