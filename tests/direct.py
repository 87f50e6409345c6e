"""Direct calls in tests: a worker in this process, and OpenAI's own client on the wire."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from uuid import UUID

import openai

from promptstack.repositories.models import JobState
from promptstack.tasks.worker_services import WorkerServices
from tests.http import live_server
from tests.jobs import execute, sql


@contextmanager
def working(stack: WorkerServices) -> Iterator[None]:
    """Run each job that is queued, as a worker does. One that is tried again is due at once."""
    stop = threading.Event()
    stack.heartbeat.beat()

    def do(job_id: UUID) -> None:
        execute(stack, job_id)
        sql(stack, "UPDATE jobs SET not_before = now() WHERE id = :id", id=job_id)

    def work() -> None:
        while not stop.wait(0.01):
            for job in stack.jobs.get_many(state=JobState.QUEUED):
                do(job.id)

    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(work)
        try:
            yield
        finally:
            stop.set()
            ended.result(30)


@contextmanager
def openai_client(stack: WorkerServices, email: str = "ada@example.org") -> Iterator[openai.OpenAI]:
    """OpenAI's client with a key of this user, which sends nothing twice."""
    key = stack.keys.create(email, "Test")
    with (
        live_server(stack) as (_, url),
        openai.OpenAI(
            base_url=f"{url}/openai/v1", api_key=key, max_retries=0, timeout=60
        ) as client,
    ):
        yield client
