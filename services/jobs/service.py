"""Jobs as their callers use them: enqueue, look at, wait for, cancel and retry them."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Unpack
from uuid import UUID

from promptstack.config.names import Queue
from promptstack.repositories.jobs.records import JobFilter
from promptstack.repositories.models import Job, JobKind, JobState
from promptstack.repositories.pages import Page, PageQuery
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.access.key_terms import check_came_with
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.log import AuditLog
from promptstack.services.errors import InvalidInput, NotFound, WrongState
from promptstack.services.jobs.enqueue import JobEnqueuer
from promptstack.services.jobs.entries import GenerationOptions
from promptstack.services.jobs.filters import JobFilters, checked_filter
from promptstack.services.jobs.new_job import JobDefaults
from promptstack.services.jobs.progress import Progress, ProgressService
from promptstack.services.jobs.publishing import JobMessage, Publisher, publish_now
from promptstack.services.jobs.texts import JobTexts
from promptstack.services.jobs.views import AttemptView, JobView, Wait
from promptstack.services.jobs.waits import JobWaits
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.streams.pieces import Piece
from promptstack.services.streams.reader import TextStreams
from promptstack.services.validation.ids import find_id, read_id
from promptstack.services.validation.paging import asked_page

POLL_SECONDS = 0.1


class JobService(JobEnqueuer):
    """Enqueues jobs and answers for them.

    An id may also be given as text. One that can't be an id raises `InvalidInput`.
    """

    def __init__(
        self,
        ledger: Ledger,
        publisher: Publisher,
        progress: ProgressService,
        factory: LLMServiceFactory,
        defaults: JobDefaults,
        *,
        waits: JobWaits,
        texts: TextStreams,
        after_bulk: Callable[[Collection[Queue]], None],
    ) -> None:
        super().__init__(ledger, publisher, factory, defaults, after_bulk)
        self._ledger = ledger
        self._progress = progress
        self._waits = waits
        self._defaults = defaults
        self._publish = partial(publish_now, ledger, publisher)
        self._texts = JobTexts(self.get, texts)

    def get(self, job_id: UUID | str, *, owner: UUID | None = None) -> JobView:
        """Return a job; with `owner`, only one of that user's. Raises `NotFound`."""
        with self._ledger.transaction() as work:
            return self._waits.view(work, _find(work, job_id, owner))

    def find(self, given: str) -> UUID:
        """The id of the one job whose id begins so. Raises what `find_id` raises."""
        with self._ledger.transaction() as work:
            return find_id(work.jobs, "job", given)

    def wait(self, job_ids: Sequence[UUID | str], timeout: float = math.inf) -> list[JobView]:
        """Wait until these jobs have ended, and return them in the order of their ids.

        Raises `NotFound`, and `TimeoutError` after `timeout` seconds. The jobs go on then.
        """
        if not timeout >= 0:
            raise InvalidInput("The timeout must be 0 seconds or more.")
        deadline = time.monotonic() + timeout
        left = {job.id for job in self.get_all(job_ids) if not job.state.is_final}
        while left:
            if time.monotonic() >= deadline:
                count = f"{len(left)} of {len(set(job_ids))} jobs"
                raise TimeoutError(f"{count} have not ended after {timeout:g} s; they go on.")
            time.sleep(POLL_SECONDS)
            with self._ledger.transaction() as work:
                left = work.jobs.open_of(left)
        return self.get_all(job_ids)

    def stream(
        self, job: JobView | UUID | str, *, position: str = "0", timeout: float = math.inf
    ) -> Iterator[Piece]:
        """Yield the text of a generation as it is produced, until the job has ended.

        A piece of the kind `text` has more of it. One of the kind `restart` says that the text
        begins again: forget what came before. After a lost connection, go on after the `position`
        of the last piece. A job that did not ask for `stream` has one piece, at its end.

        Raises `NoAnswer` if the job ends without one, `TimeoutError` after `timeout` seconds,
        `NotFound`, and `InvalidInput`.
        """
        known = job if isinstance(job, JobView) else self.get(job)
        return self._texts.follow(known, position, timeout)

    def stream_generation(
        self, prompt: str | None = None, **options: Unpack[GenerationOptions]
    ) -> Iterator[Piece]:
        """Enqueue a generation, and yield its text as it is produced; see `stream`."""
        options["stream"] = True
        return self.stream(self.enqueue_generation(prompt, **options))

    def get_all(self, job_ids: Sequence[UUID | str]) -> list[JobView]:
        """Return the jobs of these ids, in their order. Raises `NotFound` for the first missing."""
        ids = [read_id(job_id, "job") for job_id in job_ids]
        with self._ledger.transaction() as work:
            found = {job.id: job for job in work.jobs.get_all(ids, with_results=True)}
            for job_id in ids:
                if job_id not in found:
                    raise NotFound(f"There is no job {job_id}.")
            return self._waits.views(work, [found[job_id] for job_id in ids])

    def waits_of(self, job_ids: Sequence[UUID]) -> dict[UUID, Wait]:
        """What each of these jobs waits for; those that are not queued are left out."""
        with self._ledger.transaction() as work:
            views = self._waits.views(work, work.jobs.get_all(job_ids))
        return {view.id: view.waits for view in views if view.waits is not None}

    def get_many(
        self,
        *,
        owner: UUID | None = None,
        after: UUID | str | None = None,
        before: UUID | str | None = None,
        limit: int = 50,
        **wanted: Unpack[JobFilters],
    ) -> list[JobView]:
        """Return jobs, newest first: those after an id, or the last ones before it.

        Shards of runs are left out, unless `kind` asks for them.
        """
        asked = asked_page("job", limit=limit, after=after, before=before)
        return self.get_page(JobFilter(user_id=owner, **wanted), asked).rows

    def get_page(self, wanted: JobFilter, asked: PageQuery) -> Page[JobView]:
        """Return a page of jobs, newest first. Raises `InvalidInput`."""
        wanted = checked_filter(wanted)
        with self._ledger.transaction() as work:
            page = work.jobs.find(wanted, asked)
            return page.with_rows(self._waits.views(work, page.rows))

    def get_attempts(self, job_id: UUID | str, *, owner: UUID | None = None) -> list[AttemptView]:
        """Return the provider calls of a job, in order. Raises `NotFound`."""
        with self._ledger.transaction() as work:
            job = _checked(work.jobs.get_with_attempts(read_id(job_id, "job")), job_id, owner)
            return [AttemptView.model_validate(row) for row in job.attempts]

    def cancel(
        self, job_id: UUID | str, *, owner: UUID | None = None, actor: Actor | None = None
    ) -> JobView:
        """End a job that is queued or running. A running provider call is closed soon after.

        What it has produced stays. Where it is not the `actor`'s own, this is audited. Raises
        `NotFound`, and `WrongState` if it has ended.
        """
        with self._ledger.transaction() as work:
            job = _find(work, job_id, owner)
            _check_stands_alone(job, "cancel")
            _audit(work, Action.JOB_CANCELLED, job, actor)
            is_unheard = job.state == JobState.QUEUED and job.published_at is None
            if not work.jobs.cancel(job.id):
                raise WrongState(f"Job {job.id} has ended already ({job.state}).")
            if is_unheard:
                # Without a message, no worker would report the end to AsyncResult and Flower.
                work.after_commit(self._publish, JobMessage.of(job))
        return self._shown(job.id)

    def retry(
        self,
        job_id: UUID | str,
        *,
        owner: UUID | None = None,
        only_key: UUID | None = None,
        actor: Actor | None = None,
    ) -> JobView:
        """Queue a failed, cancelled or expired job again.

        If its answer came after it had ended, it succeeds with that answer, which was paid for.
        Where it is not the `actor`'s own, this is audited. With `only_key` it must have come with
        that API key. Raises `NotFound`, `NotPermitted` and `WrongState`.
        """
        with self._ledger.transaction() as work:
            job = _find(work, job_id, owner)
            check_came_with(job.api_key_id, only_key)
            _check_stands_alone(job, "retry")
            _audit(work, Action.JOB_RETRIED, job, actor)
            if not work.jobs.reopen(job.id, self._defaults.expires_seconds):
                raise WrongState(
                    f"Job {job.id} is {job.state}; only a failed, cancelled or expired job "
                    "can be retried."
                )
            work.after_commit(self._publish, JobMessage.of(job))
        return self._shown(job.id)

    def _shown(self, job_id: UUID) -> JobView:
        """Read a job again and show its progress."""
        with self._ledger.transaction() as work:
            job = _find(work, job_id, None)
            self._progress.publish(Progress.of(job))
            return self._waits.view(work, job)


def _check_stands_alone(job: Job, what: str) -> None:
    """Raise `WrongState` for a part of something else, which counts on it."""
    if job.kind == JobKind.BATCH:
        raise WrongState(f"Job {job.id} reads the file of a batch; {what} the batch.")
    if job.run_id is not None:
        raise WrongState(
            f"Job {job.id} is a part of run {job.run_id}; {what} the run: "
            f"`promptstack runs {what} {job.run_id}`."
        )


def _audit(work: UnitOfWork, action: Action, job: Job, actor: Actor | None) -> None:
    """Record what somebody does to a job of somebody else."""
    if actor is not None and job.user_id != actor.user_id:
        AuditLog.record(
            work,
            actor=actor,
            action=action,
            object=ObjectKind.JOB.of(job.id),
            detail={"owner_id": job.user_id, "kind": job.kind, "state": job.state},
        )


def _find(work: UnitOfWork, job_id: UUID | str, owner: UUID | None) -> Job:
    return _checked(work.jobs.get(read_id(job_id, "job")), job_id, owner)


def _checked(job: Job | None, job_id: UUID | str, owner: UUID | None) -> Job:
    # Another user's job is as unknown as one that doesn't exist: its id reveals nothing.
    if job is None or (owner is not None and job.user_id != owner):
        raise NotFound(f"There is no job {job_id}.")
    return job
