"""Jobs: enqueue, wait, list, cancel and retry."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

from promptstack_client.calls import Asked
from promptstack_client.events import JOB_ROUTE, EventFeed, TextFeed
from promptstack_client.feeds import Feed
from promptstack_client.methods import AnySender, Composed, Resource, Streamed, lists, sends
from promptstack_client.models.base import Id, id_of
from promptstack_client.models.events import JOB_EVENTS, JobEvent, Piece
from promptstack_client.models.jobs import Job
from promptstack_client.options import (
    EmbeddingEntry,
    EmbeddingOptions,
    GenerationEntry,
    GenerationOptions,
    JobListOptions,
)
from promptstack_client.sending import Flow
from promptstack_client.waiting import held, until_ended

Many = list[Job]


class Jobs(Resource[AnySender]):
    """Single generations and embeddings."""

    @sends("POST", "/generations", Job, keyed=True)
    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Asked:
        """Enqueue a generation, of a prompt or of messages."""
        return _asked({"prompt": prompt, "messages": messages, **options})

    @sends("POST", "/embeddings", Job, keyed=True)
    def embed(
        self, text: str, *, source: str | None = None, **options: Unpack[EmbeddingOptions]
    ) -> Asked:
        """Enqueue the embedding of a document; `source` names it."""
        return _asked({"text": text, "source": source, **options})

    @sends("POST", "/jobs/bulk", Many, inside="jobs", keyed=True)
    def bulk(
        self,
        jobs: Iterable[GenerationEntry | EmbeddingEntry],
        *,
        idempotency_key: str | None = None,
    ) -> Asked:
        """Enqueue many jobs of any kind in one transaction: all, or none."""
        return Asked(body={"jobs": list(jobs)}, idempotency_key=idempotency_key)

    @sends("GET", "/jobs/{job_id}", Job)
    def get(self, job: Job | Id) -> Asked:
        """Show a job."""
        return Asked({"job_id": id_of(job)})

    @Composed
    def wait(self, job: Job | Id, *, timeout: float | None = None) -> Flow[Job]:
        """Wait for the end of a job. Raises `WaitTimedOut` after so many seconds; it goes on."""
        return until_ended(Jobs.get.call(self, job), timeout, f"The job {id_of(job)}")

    @Composed
    def wait_all(self, jobs: Iterable[Job | Id], *, timeout: float | None = None) -> Flow[Many]:
        """Wait for the end of all of them. Raises `WaitTimedOut` after so many seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        ended = []
        for job in jobs:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            ended.append((yield from Jobs.wait.ask(self, job, timeout=left)))
        return ended

    @lists("/jobs", Job, "jobs")
    def list(self, **options: Unpack[JobListOptions]) -> Asked:
        """List jobs, the newest first."""
        return Asked(query=options)

    @sends("POST", "/jobs/{job_id}/cancel", Job, repeatable=True)
    def cancel(self, job: Job | Id) -> Asked:
        """End a job that is queued or running. What was produced so far stays."""
        return Asked({"job_id": id_of(job)})

    @sends("POST", "/jobs/{job_id}/retry", Job)
    def retry(self, job: Job | Id) -> Asked:
        """Queue a failed, cancelled or expired job again."""
        return Asked({"job_id": id_of(job)})

    @Streamed
    def events(self, job: Job | Id, *, since: str | None = None) -> Feed[JobEvent]:
        """Watch a job until its end: its states, and its text where it streams.

        Where a connection breaks, it goes on after the last event; so it does after the id `since`.
        """
        return EventFeed(JOB_ROUTE, {"job_id": id_of(job)}, JOB_EVENTS, since)

    @Streamed
    def stream(self, job: Job | Id) -> Feed[Piece]:
        """Read the text of a generation as it is produced. Raises `Unsuccessful` at its end."""
        return TextFeed(id_of(job))


def _asked(fields: dict[str, Any]) -> Asked:
    key, wait = fields.pop("idempotency_key", None), fields.pop("wait", None)
    return Asked(body=fields, idempotency_key=key, **held(wait))
