"""Enqueue: check a generation or a document, store its job, and publish its message.

Accepted means committed: a job is in the ledger before its message leaves, and a broker that is
down delays the job but does not refuse it.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Unpack
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy.orm import Session

from promptstack.repositories.models import JobKind
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import IdempotencyConflict, InvalidInput, WrongState
from promptstack.services.jobs.new_job import JobDefaults, JobOptions, NewJob
from promptstack.services.jobs.publishing import (
    BrokerUnavailable,
    JobMessage,
    Publisher,
    publish_marked,
    publish_now,
)
from promptstack.services.jobs.views import JobView
from promptstack.services.llm.answers import Capability
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.llm.parameters import GenerationKeywords
from promptstack.services.llm.requests import Fallback, GenerationRequest
from promptstack.services.text import check_name, check_storable
from promptstack.services.validation.bounds import refused_in_words
from promptstack.services.validation.ids import check_user

MAX_SOURCE_BYTES = 2_000
"""PostgreSQL refuses index entries over about 2,700 bytes."""


class JobEnqueuer:
    """Accepts generations and documents."""

    def __init__(
        self,
        ledger: Ledger,
        publisher: Publisher,
        factory: LLMServiceFactory,
        defaults: JobDefaults,
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._factory = factory
        self._defaults = defaults
        # Made once: jobs of one transaction with the same function are published together.
        self._publish = partial(publish_now, ledger, publisher)
        self._publish_marked = partial(publish_marked, ledger, publisher)

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
        `parameters` are the fields of `GenerationParameters`. `fallbacks` are asked where the
        provider can't answer. Interactive jobs go before `bulk` ones.

        The same `idempotency_key` with the same request returns the job that is there. With
        `session`, the job becomes part of the caller's transaction: it exists when the caller
        commits, and its message leaves then. Without it, it is committed on return.

        Raises `InvalidInput`, `NotFound` and `IdempotencyConflict`.
        """
        # Checks take long for a long request, so they come before the transaction: PostgreSQL ends
        # a transaction in which nothing happens for some seconds.
        with refused_in_words():
            options = JobOptions(
                user_id=user_id,
                idempotency_key=idempotency_key,
                max_retries=max_retries,
                expires_in=expires_in,
                is_bulk=bulk,
            )
        provider = provider or self._preferred_provider(session, options.user_id)
        model = self._factory.offered(provider).choose_model(Capability.GENERATION, model)
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
        new = NewJob(JobKind.GENERATION, provider, request.model, body, options)
        return self._accept(new, session, lambda work: body)

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

        `source` names the document (a path, an address, an id of yours). The same source again
        replaces its text, and only chunks that changed are paid for. It is cut into chunks of at
        most `chunk_tokens`, by default of the settings, or fewer where its model takes no more.
        The rest is as for `enqueue_generation`.
        """
        with refused_in_words():
            options = JobOptions(
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
        new = NewJob(JobKind.EMBEDDING, provider, model, body, options)

        def store(work: UnitOfWork) -> dict[str, Any]:
            document_id = work.documents.put(options.user_id, source, text, content_hash)
            return {**body, "document_id": str(document_id)}

        return self._accept(new, session, store)

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
        preferred = None
        if user_id is not None:
            with self._unit_of_work(session) as work:
                user = work.users.get(user_id)
                preferred = user.preferred_provider if user else None
        return preferred or self._defaults.generation_provider

    def _epoch(self, session: Session | None) -> str | None:
        """The broker's epoch, for a job whose message leaves right after its commit.

        It is the one of the last message: where it has changed since, the job is published twice.
        None in a caller's transaction, which may commit much later, and while the broker is away.
        """
        if session is not None:
            return None
        try:
            return self._publisher.epoch(math.inf)
        except BrokerUnavailable:
            return None  # logged when the job is not published

    def _find_same(self, work: UnitOfWork, new: NewJob) -> JobView | None:
        """The job that was enqueued under the same idempotency key, if there is one."""
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

    def _accept(
        self, new: NewJob, session: Session | None, store: Callable[[UnitOfWork], dict[str, Any]]
    ) -> JobView:
        """Store a job, unless it is there. `store` returns the request for its worker."""
        options, defaults = new.options, self._defaults
        retries = options.max_retries
        epoch = self._epoch(session)
        with self._unit_of_work(session) as work:
            known = self._find_same(work, new)
            if known is not None:
                return known
            check_user(work, options.user_id)
            job = work.jobs.add(
                kind=new.kind,
                queue=new.queue,
                provider=new.provider,
                model=new.model,
                request=store(work),
                request_hash=new.request_hash,
                user_id=options.user_id,
                idempotency_key=options.idempotency_key,
                max_retries=defaults.max_retries if retries is None else retries,
                lifetime=options.expires_in or defaults.expires_seconds,
                epoch=epoch,
            )
            if job is not None:
                publish = self._publish if epoch is None else self._publish_marked
                work.after_commit(publish, JobMessage.of(job))
                return JobView.model_validate(job)
            # Somebody else has enqueued under the same key since we looked.
            known = self._find_same(work, new)
            if known is None:
                raise WrongState(
                    "A job of the same idempotency key was deleted just now; try again."
                )
            return known

    def _check_size(self, text: str, what: str) -> None:
        size, most = len(text.encode("utf-8", "surrogatepass")), self._defaults.max_text_bytes
        if size > most:
            raise InvalidInput(
                f"{what} has {size:,} bytes; at most {most:,} are accepted (MAX_TEXT_BYTES). "
                "Split it."
            )


def check_source(source: str) -> None:
    """Raise `InvalidInput` if a document can't have this source."""
    check_name(source, "The source")
    if not 0 < len(source.encode()) <= MAX_SOURCE_BYTES:
        raise InvalidInput(f"The source must have 1 to {MAX_SOURCE_BYTES:,} UTF-8 bytes.")
