"""A known load: every job that was accepted, and what each may be billed for."""

import threading
import time
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.orm import Session

from promptstack.config.errors import PromptStackError
from promptstack.repositories.session import Ledger
from promptstack.services.jobs.service import JobService
from promptstack.simulator.ledger import billing_key

BATCH = 50
REST_SECONDS = 0.2
EVERY = 40
"""One job in so many is an embedding."""


@dataclass(frozen=True)
class Accepted:
    """A job of the load."""

    id: UUID
    marker: str
    """What its answer must hold, and no other's does."""
    billing_key: str
    """Its name in the simulator's books."""
    is_embedding: bool


@dataclass(frozen=True)
class Request:
    """One job of the load, as it is asked for."""

    marker: str
    """Its prompt, or its text."""
    key: str
    """For idempotency, and as the source of a document."""
    provider: str
    model: str | None
    is_embedding: bool

    def accepted(self, job_id: UUID, model: str) -> Accepted:
        """The job that it became, with the model that was chosen for it."""
        path = "/v1/embeddings" if self.is_embedding else "/v1/chat/completions"
        bill = billing_key(path, model, self.marker)
        return Accepted(job_id, self.marker, bill, self.is_embedding)


@dataclass(frozen=True)
class Target:
    """Whom to ask for what."""

    provider: str
    generation_model: str | None
    embedding_model: str | None
    """None: no embeddings."""

    def request(self, name: str, number: int) -> Request:
        """The request of this number in the load of this name."""
        is_embedding = self.embedding_model is not None and number % EVERY == 0
        model = self.embedding_model if is_embedding else self.generation_model
        return Request(
            f"{name} {number:06d}.", f"{name}-{number}", self.provider, model, is_embedding
        )


class Load:
    """Enqueues jobs at an even rate, whatever happens meanwhile."""

    def __init__(
        self, jobs: JobService, ledger: Ledger, target: Target, *, name: str, seconds: float
    ) -> None:
        """Spread the load over so many `seconds`; `name` makes its prompts its own."""
        self._jobs = jobs
        self._ledger = ledger
        self._target = target
        self._name = name
        self._seconds = seconds
        self.accepted: list[Accepted] = []
        self.refusals = 0
        """Batches that were not accepted at once: the servers were away."""
        self.surprises: list[str] = []
        """Answers that no caller should get; here they are exceptions."""
        self._stopped = threading.Event()

    def run(self, count: int) -> None:
        """Enqueue `count` jobs."""
        began = time.monotonic()
        for first in range(0, count, BATCH):
            due = began + self._seconds * first / count
            if self._stopped.wait(max(0.0, due - time.monotonic())):
                return
            batch = range(first, min(first + BATCH, count))
            while not self._stopped.is_set():
                try:
                    accepted = self._enqueue(batch)
                except PromptStackError as error:
                    if not error.transient:
                        raise
                    # The same keys again: what was committed unknown to us is there already.
                    self.refusals += 1
                    self._stopped.wait(REST_SECONDS)
                else:
                    self.accepted += accepted
                    break

    def stop(self) -> None:
        """Enqueue no more."""
        self._stopped.set()

    def _enqueue(self, numbers: range) -> list[Accepted]:
        with self._ledger.transaction() as unit:
            return [self._enqueue_one(number, unit.session) for number in numbers]

    def _enqueue_one(self, number: int, session: Session) -> Accepted:
        request = self._target.request(self._name, number)
        if request.is_embedding:
            job = self._jobs.enqueue_embedding(
                request.marker,
                source=request.key,
                provider=request.provider,
                model=request.model,
                idempotency_key=request.key,
                session=session,
            )
        else:
            job = self._jobs.enqueue_generation(
                request.marker,
                provider=request.provider,
                model=request.model,
                idempotency_key=request.key,
                session=session,
            )
        return request.accepted(job.id, job.model)
