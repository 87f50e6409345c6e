"""Enqueue: a job is checked, stored, and its message published."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Unpack

from sqlalchemy.orm import Session

from promptstack.config.errors import PromptStackError
from promptstack.config.names import Queue
from promptstack.repositories.idempotency import KeyedRequest
from promptstack.repositories.jobs.records import NewResponse
from promptstack.repositories.session import Ledger
from promptstack.services.errors import InvalidInput
from promptstack.services.jobs.checks import JobChecks
from promptstack.services.jobs.entries import (
    EmbeddingEntry,
    EmbeddingOptions,
    GenerationEntry,
    GenerationOptions,
    JobKeywords,
    VectorsEntry,
    is_embedding,
)
from promptstack.services.jobs.intake import JobIntake
from promptstack.services.jobs.new_job import JobDefaults, NewJob
from promptstack.services.jobs.publishing import Publisher
from promptstack.services.jobs.views import JobView
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.llm.packing import EmbeddingInput

MAX_JOBS_AT_ONCE = 10_000
"""Of one call. A run takes millions."""


class JobEnqueuer:
    """Accepts generations and documents."""

    def __init__(
        self,
        ledger: Ledger,
        publisher: Publisher,
        factory: LLMServiceFactory,
        defaults: JobDefaults,
        after_bulk: Callable[[Collection[Queue]], None],
    ) -> None:
        self._checks = JobChecks(ledger, factory, defaults)
        self._intake = JobIntake(ledger, publisher, defaults, after_bulk)

    def enqueue_generation(
        self,
        prompt: str | None = None,
        *,
        session: Session | None = None,
        **options: Unpack[GenerationOptions],
    ) -> JobView:
        """Accept one generation of a `prompt` or of `messages`.

        `options` are those of `GenerationOptions`: how to generate, the provider and its
        `fallbacks`, and the job's own.

        The same `idempotency_key` with the same request returns the job that is there. With
        `session`, the job becomes part of the caller's transaction: it exists when the caller
        commits, and its message leaves then. Without it, it is committed on return.

        Raises `InvalidInput`, `NotFound` and `IdempotencyConflict`.
        """
        entry: GenerationEntry = {"prompt": prompt, **options}
        return self._intake.accept(self._checks.of_call(session).generation(entry), session)

    def enqueue_response(
        self, response: NewResponse, **options: Unpack[GenerationOptions]
    ) -> JobView:
        """Accept one generation with what a response of OpenAI's API adds to it.

        Both are stored together. A job that is there by its idempotency key is left as it is.
        Raises as `enqueue_generation`.
        """
        return self._intake.accept(self._checks.of_call(None).generation(options), None, response)

    def enqueue_embedding(
        self,
        text: str,
        *,
        source: str,
        session: Session | None = None,
        **options: Unpack[EmbeddingOptions],
    ) -> JobView:
        """Accept the embedding of one document.

        `source` names the document (a path, an address, an id of yours). The same source again
        replaces its text, and only chunks that changed are paid for. It is cut into chunks of at
        most `chunk_tokens`, by default of the settings, or fewer where its model takes no more.
        The rest is as for `enqueue_generation`.
        """
        entry: EmbeddingEntry = {"text": text, "source": source, **options}
        return self._intake.accept(self._checks.of_call(session).embedding(entry), session)

    def enqueue_vectors(
        self,
        inputs: Sequence[EmbeddingInput],
        *,
        dimensions: int | None = None,
        session: Session | None = None,
        **options: Unpack[JobKeywords],
    ) -> JobView:
        """Accept a job that makes the vectors of some inputs, each a text or token ids.

        No document is stored, and no search finds them: `vectors.read` does, for as long as
        `QUERY_VECTOR_SECONDS` says. The rest is as for `enqueue_generation`.
        """
        entry: VectorsEntry = {"inputs": inputs, "dimensions": dimensions, **options}
        return self._intake.accept(self._checks.of_call(session).vectors(entry), session)

    def store_document(
        self,
        text: str,
        *,
        source: str,
        session: Session,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        """Check and store a document as `enqueue_embedding` does, and embed nothing."""
        entry: EmbeddingEntry = {"text": text, "source": source, **options}
        new = self._checks.of_call(session).embedding(entry)
        self._intake.store_documents([new], session)

    def enqueue_many(
        self,
        entries: Sequence[GenerationEntry | EmbeddingEntry],
        *,
        session: Session | None = None,
        keyed: KeyedRequest | None = None,
    ) -> list[JobView]:
        """Accept all of these jobs in one transaction, or none; they are returned in order.

        An entry is a mapping with the arguments of `enqueue_generation`, or of
        `enqueue_embedding`: `{"prompt": ...}`, or `{"text": ..., "source": ...}`. `session` is as
        there, and the errors too: they begin with the entry's place, such as `jobs[3]`. A request
        that was `keyed` is accepted once: sent again, it returns the jobs that are there.
        """
        if not isinstance(entries, list | tuple):
            raise InvalidInput("The jobs must be a list, of one mapping for each job.")
        if len(entries) > MAX_JOBS_AT_ONCE:
            raise InvalidInput(
                f"There are {len(entries):,} jobs; at most {MAX_JOBS_AT_ONCE:,} are accepted at "
                "once. Hand them in in several calls, or as a run."
            )
        checks = self._checks.of_call(session)
        jobs = [_checked(checks, entry, n) for n, entry in enumerate(entries)]
        if keyed is not None:
            jobs = [_keyed(job, keyed.key, n) for n, job in enumerate(jobs)]
        return self._intake.accept_all(jobs, session, keyed) if jobs else []


def _keyed(job: NewJob, key: str, number: int) -> NewJob:
    """A job of a list whose request has a key: one of its own, unless it has one already."""
    if job.key is not None:
        return job
    digest = hashlib.sha256(key.encode()).hexdigest()
    options = job.options.model_copy(update={"idempotency_key": f"list:{digest}:{number}"})
    return replace(job, options=options)


def _checked(checks: JobChecks, entry: GenerationEntry | EmbeddingEntry, number: int) -> NewJob:
    place = f"jobs[{number}]: "
    try:
        if not isinstance(entry, Mapping):
            raise InvalidInput("A job must be a mapping, such as {'prompt': 'Say hello.'}.")
        check = checks.embedding if is_embedding(entry) else checks.generation
        return check(entry, place)
    except PromptStackError as error:
        error.args = (f"{place}{error}",)
        if isinstance(error, InvalidInput):
            error.pointer = f"/jobs/{number}{error.pointer}"
        raise
