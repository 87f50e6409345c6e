"""The enqueue API: hand in generation and embedding jobs, ask for them, cancel, retry.

Accepted means committed: a job is in the ledger before its message leaves, and a broker that is
down delays the job but does not refuse it.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Unpack
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy.orm import Session

from promptstack.repositories.jobs.records import EndedJobs
from promptstack.repositories.jobs.steps import RETRIABLE_STATES
from promptstack.repositories.models import Job, JobKind, JobState
from promptstack.repositories.session import Ledger, UnitOfWork
from promptstack.services.errors import IdempotencyConflict, InvalidInput, NotFound, WrongState
from promptstack.services.jobs.new_job import JobDefaults, JobOptions, NewJob
from promptstack.services.jobs.progress import Progress, ProgressService
from promptstack.services.jobs.publishing import (
    BrokerUnavailable,
    JobMessage,
    Publisher,
    publish_marked,
    publish_now,
)
from promptstack.services.jobs.views import AttemptView, JobView
from promptstack.services.llm.base import Capability
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.llm.parameters import GenerationKeywords
from promptstack.services.llm.requests import Fallback, GenerationRequest
from promptstack.services.text import check_name, check_storable
from promptstack.services.validation.bounds import checked_time, refused_in_words
from promptstack.services.validation.ids import find_id

MAX_SOURCE_BYTES = 2_000
"""PostgreSQL refuses index entries over about 2,700 bytes."""
RETRIED_AT_ONCE = 500
"""Jobs queued again in one transaction."""
POLL_SECONDS = 0.1


class JobService:
    """Enqueues jobs and answers for them."""

    def __init__(
        self,
        ledger: Ledger,
        publisher: Publisher,
        progress: ProgressService,
        factory: LLMServiceFactory,
        defaults: JobDefaults,
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._progress = progress
        self._factory = factory
        self._defaults = defaults

    def enqueue_generation(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[BaseModel | Mapping[str, Any]] = (),
        provider: str | None = None,
        model: str | None = None,
        fallbacks: Sequence[Fallback] = (),
        bulk: bool = False,
        user_id: UUID | None = None,
        idempotency_key: str | None = None,
        max_retries: int | None = None,
        expires_in: float | None = None,
        session: Session | None = None,
        **parameters: Unpack[GenerationKeywords],
    ) -> JobView:
        """Accept one generation of a `prompt` or of `messages`.

        Messages are ours or as OpenAI's clients write them, the answers of its SDK included. The
        other `parameters` are the fields of `GenerationParameters`.

        With `session`, the job becomes part of the caller's transaction: it exists when the
        caller commits, and its message leaves then. Without it, it is committed on return.
        The same `idempotency_key` with the same request returns the job that is there.
        `fallbacks` are asked where the provider can't
        answer. Interactive jobs go before `bulk` ones. Raises `InvalidInput`,
        `IdempotencyConflict`.
        """
        # All that takes long for a long request comes before the transaction: PostgreSQL ends one
        # in which nothing happens for some seconds.
        provider = provider or self._preferred_provider(session, user_id)
        model = self._factory.offered(provider).choose_model(Capability.GENERATION, model)
        with refused_in_words():
            job_options = JobOptions(
                user_id=user_id,
                idempotency_key=idempotency_key,
                max_retries=max_retries,
                expires_in=expires_in,
                is_bulk=bulk,
            )
        request = self._defaults.request_bounds.checked(
            GenerationRequest,
            provider=provider,
            model=model,
            prompt=prompt,
            messages=tuple(messages),
            fallbacks=tuple(map(self._complete, fallbacks)),
            **parameters,
        )
        for target in request.targets():
            self._factory.service_class(target.provider).check_request(target)
        body = request.model_dump(mode="json", exclude_defaults=True)
        self._check_size(json.dumps(body, ensure_ascii=False), "The request")
        new = NewJob(JobKind.GENERATION, provider, request.model, body, job_options)
        epoch = self._epoch(session)
        with self._unit_of_work(session) as work:
            return self._find_same(work, new) or self._accept(work, new, body, epoch)

    def enqueue_embedding(
        self,
        text: str,
        *,
        source: str,
        provider: str | None = None,
        model: str | None = None,
        chunk_tokens: int | None = None,
        bulk: bool = False,
        user_id: UUID | None = None,
        idempotency_key: str | None = None,
        max_retries: int | None = None,
        expires_in: float | None = None,
        session: Session | None = None,
    ) -> JobView:
        """Accept the embedding of one document.

        `source` names the document (a path, an address, an id of yours); the same source again
        replaces its text, and only chunks that changed are paid for. It is cut into chunks of at
        most `chunk_tokens`, by default of the settings, or fewer where its model takes no more.
        The rest is as for `enqueue_generation`.
        """
        with refused_in_words():
            job_options = JobOptions(
                user_id=user_id,
                idempotency_key=idempotency_key,
                max_retries=max_retries,
                expires_in=expires_in,
                is_bulk=bulk,
                chunk_tokens=chunk_tokens,
            )
        provider = provider or self._defaults.embedding_provider
        model = self._factory.offered(provider).choose_model(Capability.EMBEDDING, model)
        check_storable(text, "The document")
        if not text.strip():
            raise InvalidInput("The document is empty; there is nothing to embed.")
        check_source(source)
        self._check_size(text, "The document")
        content_hash = hashlib.sha256(text.encode()).digest()
        body: dict[str, Any] = {"source": source, "content_hash": content_hash.hex()}
        if chunk_tokens is not None:
            body["chunk_tokens"] = chunk_tokens
        new = NewJob(JobKind.EMBEDDING, provider, model, body, job_options)
        epoch = self._epoch(session)
        with self._unit_of_work(session) as work:
            known = self._find_same(work, new)
            if known is not None:
                return known
            _check_user(work, user_id)
            document_id = work.documents.put(user_id, source, text, content_hash)
            return self._accept(work, new, {**body, "document_id": str(document_id)}, epoch)

    def get(self, job_id: UUID, *, owner: UUID | None = None) -> JobView:
        """Return a job; with `owner`, only one of that user's. Raises `NotFound`."""
        with self._ledger.transaction() as work:
            return JobView.model_validate(_find(work, job_id, owner))

    def find(self, given: str) -> UUID:
        """The id of the one job whose id begins so. Raises what `find_id` raises."""
        with self._ledger.transaction() as work:
            return find_id(work.jobs, "job", given)

    def wait(self, job_ids: Sequence[UUID], timeout: float = math.inf) -> list[JobView]:
        """Wait until these jobs have ended; how they did, in the order of the ids.

        Raises `NotFound`, and `TimeoutError` after `timeout` seconds; the jobs go on then.
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

    def get_all(self, job_ids: Sequence[UUID]) -> list[JobView]:
        """Return the jobs of these ids, in their order. Raises `NotFound` for the first missing."""
        with self._ledger.transaction() as work:
            found = {job.id: job for job in work.jobs.get_all(job_ids, with_results=True)}
            for job_id in job_ids:
                if job_id not in found:
                    raise NotFound(f"There is no job {job_id}.")
            return [JobView.model_validate(found[job_id]) for job_id in job_ids]

    def get_many(
        self,
        *,
        owner: UUID | None = None,
        state: JobState | None = None,
        kind: JobKind | None = None,
        after: UUID | None = None,
        limit: int = 50,
    ) -> list[JobView]:
        """Jobs, newest first; `after` is the last id of the page before.

        Those that runs are made of are among them only where their `kind` is asked for.
        """
        filters: dict[str, Any] = {"user_id": owner, "state": state, "kind": kind}
        chosen = {name: value for name, value in filters.items() if value is not None}
        if kind is None:
            chosen["run_id"] = None
        with self._ledger.transaction() as work:
            rows = work.jobs.get_many(limit=limit, after=after, newest_first=True, **chosen)
            return [JobView.model_validate(row) for row in rows]

    def get_attempts(self, job_id: UUID, *, owner: UUID | None = None) -> list[AttemptView]:
        """The provider calls of a job, in order. Raises `NotFound`."""
        with self._ledger.transaction() as work:
            job = _find(work, job_id, owner)
            return [AttemptView.model_validate(row) for row in job.attempts]

    def cancel(self, job_id: UUID, *, owner: UUID | None = None) -> JobView:
        """End a job that is queued or running; a running provider call is closed soon after.

        What was produced so far stays. Raises `NotFound`, and `WrongState` if it has ended.
        """
        with self._ledger.transaction() as work:
            job = _find(work, job_id, owner)
            _check_stands_alone(job, "cancel")
            is_unheard = job.state == JobState.QUEUED and job.published_at is None
            if not work.steps.cancel(job_id):
                raise WrongState(f"Job {job_id} has ended already ({job.state}).")
            if is_unheard:
                # No message is on its way whose worker would tell AsyncResult and Flower.
                self._publish_after_commit(work, job)
        return self._shown(job_id)

    def retry(self, job_id: UUID, *, owner: UUID | None = None) -> JobView:
        """Queue a failed, cancelled or expired job again.

        One whose answer came when it had ended succeeds with it: it was paid for. Raises
        `NotFound`, `WrongState`.
        """
        with self._ledger.transaction() as work:
            job = _find(work, job_id, owner)
            _check_stands_alone(job, "retry")
            if not work.steps.reopen(job_id, self._defaults.expires_seconds):
                raise WrongState(
                    f"Job {job_id} is {job.state}; only a failed, cancelled or expired job "
                    "can be retried."
                )
            self._publish_after_commit(work, job)
        return self._shown(job_id)

    def retry_many(
        self,
        *,
        owner: UUID | None = None,
        state: JobState | None = JobState.FAILED,
        kind: JobKind | None = None,
        provider: str | None = None,
        model: str | None = None,
        error_code: str | None = None,
        since: datetime | None = None,
        on_progress: Callable[[int], None] = lambda retried: None,
    ) -> int:
        """Queue all jobs again that ended so until now, for example after an outage; how many.

        `state` is failed, cancelled or expired, or None for all three; `since` is when they ended.
        Some hundred are queued at a time; `on_progress` is called with the number of each step.
        Workers' reconcilers publish them.
        Raises `WrongState` for another state.
        """
        if state is not None and state not in RETRIABLE_STATES:
            raise WrongState(f"A {state} job can't be retried; only failed, cancelled and expired.")
        since = checked_time(since, "since")
        for text in (provider, model, error_code):
            check_storable(text or "", "The filter")
        retried = 0
        with self._ledger.transaction() as work:
            until = work.now()
        ended = EndedJobs(until, since, state, owner, kind, provider, model, error_code)
        while True:
            with self._ledger.transaction() as work:
                reopened = work.steps.reopen_many(
                    ended, self._defaults.expires_seconds, RETRIED_AT_ONCE
                )
            self._progress.rebuild(reopened)
            retried += len(reopened)
            on_progress(len(reopened))
            if len(reopened) < RETRIED_AT_ONCE:
                return retried

    @contextmanager
    def _unit_of_work(self, session: Session | None) -> Iterator[UnitOfWork]:
        if session is not None:
            yield self._ledger.join(session)
        else:
            with self._ledger.transaction() as work:
                yield work

    def _complete(self, fallback: Fallback) -> Fallback:
        """Name the model of a fallback. Raises `UnknownProvider`, `UnknownModel`."""
        service = self._factory.offered(fallback.provider)
        model = service.choose_model(Capability.GENERATION, fallback.model)
        return fallback.model_copy(update={"model": model})

    def _preferred_provider(self, session: Session | None, user_id: UUID | None) -> str:
        if user_id is None:
            return self._defaults.generation_provider
        with self._unit_of_work(session) as work:
            user = work.users.get(user_id)
        preferred = user.preferred_provider if user else None
        return preferred or self._defaults.generation_provider

    def _accept(
        self, work: UnitOfWork, new: NewJob, request: dict[str, Any], epoch: str | None
    ) -> JobView:
        """Store the job; `request` is what its worker reads, `epoch` as of `_epoch`."""
        options = new.options
        _check_user(work, options.user_id)
        lifetime = options.expires_in or self._defaults.expires_seconds
        retries = options.max_retries
        job = work.jobs.add(
            kind=new.kind,
            queue=new.queue,
            provider=new.provider,
            model=new.model,
            request=request,
            request_hash=new.request_hash,
            user_id=options.user_id,
            idempotency_key=options.idempotency_key,
            max_retries=self._defaults.max_retries if retries is None else retries,
            lifetime=lifetime,
            epoch=epoch,
        )
        if job is None:
            # Somebody else has enqueued under the same key since we looked.
            known = self._find_same(work, new)
            if known is None:
                raise WrongState(
                    "A job of the same idempotency key was deleted just now; try again."
                )
            return known
        work.after_commit(
            self._publish if epoch is None else self._publish_marked, JobMessage.of(job)
        )
        return JobView.model_validate(job)

    def _find_same(self, work: UnitOfWork, new: NewJob) -> JobView | None:
        key = new.options.idempotency_key
        if key is None:
            return None
        job = work.jobs.find_by_idempotency_key(new.options.user_id, key)
        if job is None:
            return None
        if job.request_hash != new.request_hash:
            raise IdempotencyConflict(
                f"The idempotency key was used for another request (job {job.id}); "
                "send a new key for a new request."
            )
        return JobView.model_validate(job)

    def _publish_after_commit(self, work: UnitOfWork, job: Job) -> None:
        work.after_commit(self._publish, JobMessage.of(job))

    def _publish_marked(self, messages: list[JobMessage]) -> None:
        publish_marked(self._ledger, self._publisher, messages)

    def _epoch(self, session: Session | None) -> str | None:
        """The broker's epoch, for a job whose message leaves when it is committed in a moment.

        None where nobody knows when its caller commits, and where the broker is away.
        """
        if session is not None:
            return None
        try:
            return self._publisher.epoch()
        except BrokerUnavailable:
            return None  # said when it is not published

    def _publish(self, messages: list[JobMessage]) -> None:
        publish_now(self._ledger, self._publisher, messages)

    def _shown(self, job_id: UUID) -> JobView:
        """Read a job anew and show where it stands."""
        with self._ledger.transaction() as work:
            job = _find(work, job_id, None)
            self._progress.publish(Progress.of(job))
            return JobView.model_validate(job)

    def _check_size(self, text: str, what: str) -> None:
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > self._defaults.max_text_bytes:
            raise InvalidInput(
                f"{what} has {size:,} bytes; at most {self._defaults.max_text_bytes:,} are "
                "accepted (MAX_TEXT_BYTES). Split it."
            )


def check_source(source: str) -> None:
    """Raise `InvalidInput` if a document can't have this source."""
    check_name(source, "The source")
    if not 0 < len(source.encode()) <= MAX_SOURCE_BYTES:
        raise InvalidInput(f"The source must have 1 to {MAX_SOURCE_BYTES:,} UTF-8 bytes.")


def _check_user(work: UnitOfWork, user_id: UUID | None) -> None:
    if user_id is not None and work.users.get(user_id) is None:
        raise NotFound(f"There is no user {user_id}.")


def _check_stands_alone(job: Job, what: str) -> None:
    """Raise `WrongState` for a part of a run, which counts on its parts."""
    if job.run_id is not None:
        raise WrongState(
            f"Job {job.id} is a part of run {job.run_id}; {what} the run: "
            f"`promptstack runs {what} {job.run_id}`."
        )


def _find(work: UnitOfWork, job_id: UUID, owner: UUID | None) -> Job:
    job = work.jobs.get(job_id)
    # Another user's job is as unknown as one that doesn't exist: its id must tell nothing.
    if job is None or (owner is not None and job.user_id != owner):
        raise NotFound(f"There is no job {job_id}.")
    return job
