"""The intake of jobs: stores jobs that were checked, and publishes their messages.

Accepted means committed: a job is in the ledger before its message leaves, and a broker that is
down delays the job but does not refuse it.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from uuid import UUID

from sqlalchemy.orm import Session

from promptstack.config.names import Queue
from promptstack.repositories.content.documents import NewDocument
from promptstack.repositories.errors import (
    LedgerConflict,
    UnknownUser,
)
from promptstack.repositories.idempotency import KeyedRequest
from promptstack.repositories.jobs.new_jobs import COPIED_FROM, NewJobRepository
from promptstack.repositories.jobs.records import Accepted, NewJobRow, NewResponse
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import NotFound, NotYet
from promptstack.services.idempotency.claims import claim
from promptstack.services.jobs.combined import Combined
from promptstack.services.jobs.known_keys import Known, check_same, explained, find_known
from promptstack.services.jobs.new_job import (
    JobDefaults,
    NewJob,
    bulk_queues_of,
    messages_of,
)
from promptstack.services.jobs.publishing import (
    BrokerUnavailable,
    Publisher,
    publish_marked,
    publish_now,
)
from promptstack.services.jobs.stored_once import stored_once
from promptstack.services.jobs.views import JobView

MOST_TOGETHER = 100
"""Jobs of several threads that are stored by one statement."""
MOMENT_SECONDS = 0.05
"""Longest wait of those jobs for another transaction that has used the key of one of them."""
LOCK_SECONDS = 2.0
"""Longest wait of a job, or of those of one call, which nobody else waits with."""


class JobIntake:
    """Stores new jobs and publishes their messages."""

    def __init__(
        self,
        ledger: Ledger,
        publisher: Publisher,
        defaults: JobDefaults,
        after_bulk: Callable[[Collection[Queue]], None],
    ) -> None:
        """Take `after_bulk`, called when bulk jobs were added for these queues: it never raises."""
        self._after_bulk = after_bulk
        self._ledger = ledger
        self._publisher = publisher
        self._defaults = defaults
        self._add_at_once = Combined(self._add_by_one_statement, MOST_TOGETHER)
        # Made once: jobs of one transaction with the same function are published together.
        self._publish = partial(publish_now, ledger, publisher)
        self._publish_marked = partial(publish_marked, ledger, publisher)

    def accept(
        self,
        new: NewJob,
        session: Session | None = None,
        response: NewResponse | None = None,
    ) -> JobView:
        """Store one job, in the transaction of `session` or at once. Raises as `accept_all`.

        One that is stored at once may come with its `response`; a job that is there keeps its own.
        """
        if session is None and new.document is None:
            try:
                accepted = self._add_soon(new, response)
            except UnknownUser as error:
                raise NotFound(f"There is no user {new.options.user_id}.") from error
            if accepted is not None:
                return new.view(accepted, self._retries(new))
        [view] = self.accept_all([new], session)
        return view

    def accept_all(
        self,
        jobs: Sequence[NewJob],
        session: Session | None = None,
        keyed: KeyedRequest | None = None,
    ) -> list[JobView]:
        """Store all jobs or none; a job of a known idempotency key is the one that is there.

        A request that was `keyed` is never taken for another one with its key.

        Raises `IdempotencyConflict`, `NotFound` for an unknown user, and `NotYet`.
        """
        if session is not None:
            return self._store(jobs, session, keyed)
        return stored_once(lambda: self._store(jobs, None, keyed))

    def store_documents(self, jobs: Sequence[NewJob], session: Session) -> None:
        """Store the documents of these, and no jobs. Raises `NotFound` for an unknown user."""
        work = self._ledger.join(session)
        _check_users(work, jobs)
        work.documents.put_many([job.document for job in jobs if job.document])

    def _add_soon(self, new: NewJob, response: NewResponse | None) -> Accepted | None:
        """Add a job with those of other threads; alone where its key keeps it waiting.

        A caller's own transaction may have used the key, and stay open for as long as it likes.
        """
        if response is not None:
            with explained():
                return self._add_by_one_statement([new], LOCK_SECONDS, response)[0]
        try:
            return self._add_at_once(new)
        except LedgerConflict:
            with explained():
                return self._add_by_one_statement([new], LOCK_SECONDS)[0]

    def _store(
        self, jobs: Sequence[NewJob], session: Session | None, keyed: KeyedRequest | None
    ) -> list[JobView]:
        epoch = self._epoch() if session is None else None
        publish = self._publish if epoch is None else self._publish_marked
        with_keys = [job for job in jobs if job.key]
        with self._unit_of_work(session, jobs) as work:
            claim(work, keyed, jobs[0].id)
            known = find_known(work, with_keys)
            for job in with_keys:
                check_same(job, known)
            new = [job for job in jobs if job.key not in known] if known else jobs
            _check_users(work, new)
            added = self._add(work.new_jobs, self._rows(work, new), epoch)
            if len(added) < len(new):
                # Of a key that is twice among them, or that somebody else has used since.
                known |= find_known(work, [job for job in with_keys if job.id not in added])
            times = [added.get(job.id) for job in jobs]
            added_jobs = [
                (job, time) for job, time in zip(jobs, times, strict=True) if time is not None
            ]
            work.after_commit(publish, *messages_of(added_jobs))
            work.after_commit(self._send_bulk, *bulk_queues_of(added_jobs))
            return [self._accepted(*one, known) for one in zip(jobs, times, strict=True)]

    def _accepted(self, new: NewJob, accepted: Accepted | None, known: Known) -> JobView:
        if accepted is not None:
            return new.view(accepted, self._retries(new))
        job = check_same(new, known)
        if job is None:
            raise NotYet(
                f"{new.place}A job of the same idempotency key was deleted just now; try again."
            )
        return JobView.model_validate(job)

    def _add_by_one_statement(
        self,
        jobs: Sequence[NewJob],
        lock_seconds: float = MOMENT_SECONDS,
        response: NewResponse | None = None,
    ) -> list[Accepted | None]:
        """Add jobs that don't depend on each other, and publish those that were added.

        None for a job whose key is known. Raises `UnknownUser`, and `LedgerConflict` where another
        transaction that has used the key of one of them is not over.
        """
        epoch = self._epoch()
        rows = [self._row(job) for job in jobs]

        def store() -> dict[UUID, Accepted]:
            with self._ledger.statement() as statement:
                return statement.new_jobs.add(rows, epoch, lock_seconds, response)

        def store_again() -> dict[UUID, Accepted]:
            with self._ledger.transaction() as work:
                work.limit_locks(lock_seconds)
                return self._add(work.new_jobs, rows, epoch, response)

        added = stored_once(store, store_again)
        times = [added.get(job.id) for job in jobs]
        publish = self._publish if epoch is None else self._publish_marked
        added_jobs = [(job, added[job.id]) for job in jobs if job.id in added]
        if messages := messages_of(added_jobs):
            publish(messages)
        self._send_bulk(bulk_queues_of(added_jobs))
        return times

    def _send_bulk(self, queues: Collection[Queue]) -> None:
        """Let bulk jobs of these queues be sent: their users take turns."""
        if queues:
            self._after_bulk(queues)

    @staticmethod
    def _add(
        new_jobs: NewJobRepository,
        rows: Sequence[NewJobRow],
        epoch: str | None,
        response: NewResponse | None = None,
    ) -> dict[UUID, Accepted]:
        """Add jobs, or find them where a commit of which nobody heard has added them."""
        if len(rows) >= COPIED_FROM:
            added = new_jobs.copy(rows, epoch)
        else:
            added = new_jobs.add(rows, epoch, response=response)
        left_out = [row.id for row in rows if row.id not in added]
        return added | new_jobs.find(left_out) if left_out else added

    @contextmanager
    def _unit_of_work(
        self, session: Session | None, jobs: Sequence[NewJob]
    ) -> Iterator[UnitOfWork]:
        if session is None:
            with explained(), self._ledger.transaction() as work:
                if any(job.key or job.document for job in jobs):
                    work.limit_locks(LOCK_SECONDS)
                yield work
        else:
            # Of many jobs, a refused one must take the others with it.
            with session.begin_nested() if len(jobs) > 1 else nullcontext():
                yield self._ledger.join(session)

    def _epoch(self) -> str | None:
        """The broker's epoch, for jobs whose messages leave right after their commit.

        It is that of the last message: where it has changed since, a job is published twice. None
        while the broker is away.
        """
        try:
            return self._publisher.epoch(math.inf)
        except BrokerUnavailable:
            return None  # logged when the job is not published

    def _rows(self, work: UnitOfWork, jobs: Sequence[NewJob]) -> list[NewJobRow]:
        """The rows of jobs, once their documents are stored."""
        documents = [job.document for job in jobs if job.document]
        ids = work.documents.put_many(documents) if documents else {}
        return [self._row(job, _id_of(job.document, ids)) for job in jobs]

    def _row(self, new: NewJob, document_id: UUID | None = None) -> NewJobRow:
        request = new.written
        if document_id is not None:
            request = json.dumps({**new.body, "document_id": str(document_id)})
        return NewJobRow(
            id=new.id,
            kind=new.kind,
            queue=new.queue,
            provider=new.provider,
            model=new.model,
            request=request,
            request_hash=new.request_hash,
            user_id=new.options.user_id,
            api_key_id=new.options.api_key_id,
            idempotency_key=new.options.idempotency_key,
            max_retries=self._retries(new),
            webhook=new.options.webhook.url if new.options.webhook else None,
            lifetime=new.options.expires_in or self._defaults.expires_seconds,
            tags=new.options.tags,
        )

    def _retries(self, new: NewJob) -> int:
        said = new.options.max_retries
        return self._defaults.max_retries if said is None else said


def _check_users(work: UnitOfWork, jobs: Sequence[NewJob]) -> None:
    """Raise `NotFound` where a job's user is not there. None stands for no user."""
    there: set[UUID] = set()
    for job in jobs:
        user_id = job.options.user_id
        if user_id is None or user_id in there:
            continue
        if work.users.get(user_id) is None:
            raise NotFound(f"{job.place}There is no user {user_id}.")
        there.add(user_id)


def _id_of(document: NewDocument | None, ids: dict[tuple[UUID, str], UUID]) -> UUID | None:
    return None if document is None else ids[document.key]
