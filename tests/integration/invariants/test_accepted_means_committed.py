"""Enqueue answers only once the job is committed; without a broker, its message is sent later."""

from collections.abc import Sequence

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from promptstack.config.names import Queue
from promptstack.config.settings import Settings
from promptstack.repositories.models import JobState
from promptstack.services.jobs.new_job import JobDefaults
from promptstack.services.jobs.publishing import JobMessage
from promptstack.services.jobs.service import JobService
from promptstack.services.jobs.waits import JobWaits
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.jobs import NO_REDIS, another, generate, row, sql, state


def test_a_job_is_committed_when_its_message_leaves_and_when_enqueue_answers(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    engine = create_engine(stack.database_url)
    seen: list[int] = []

    class RecordingPublisher:
        def epoch(self, max_age: float = 0.0) -> str:
            return "epoch"

        def uptime(self) -> float | None:
            return None

        def waiting(self, queue: Queue) -> int:
            return 0

        def publish(self, messages: Sequence[JobMessage]) -> str:
            for message in messages:
                with engine.connect() as connection:
                    query = text("SELECT count(*) FROM jobs WHERE id = :id")
                    seen.append(connection.execute(query, {"id": message.job_id}).scalar_one())
            return "epoch"

        def publish_all(self, messages: Sequence[JobMessage]) -> None:
            self.publish(messages)

    defaults = JobDefaults("fake", "fake", max_retries=3, expires_seconds=60, max_text_bytes=99)
    jobs = JobService(
        stack.ledger,
        RecordingPublisher(),
        stack.progress,
        stack.factory,
        defaults,
        waits=JobWaits(stack.factory, 60),
        texts=stack.text_streams,
        after_bulk=stack.bulk_jobs.after_enqueue,
    )
    job = jobs.enqueue_generation("x")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT id FROM jobs")).scalars().all() == [job.id]
    engine.dispose()
    assert seen == [1]


def test_a_job_is_accepted_without_a_broker_and_published_later(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    with another(stack, redis_url=NO_REDIS) as cut_off:
        cut_off.factory.register("fake", stack.factory.service_class("fake"))
        job = generate(cut_off)
    assert (state(stack, job), row(stack, job).published_at) == (JobState.QUEUED, None)
    sql(stack, "UPDATE jobs SET created_at = created_at - interval '6 s'")
    assert stack.reconciler.run_once()["messages"] == 1
    assert stack.publisher.waiting(Queue.GENERATION) == 1


def test_enqueue_needs_one_connection_at_a_time(settings: Settings) -> None:
    one_connection = {"database_pool_size": 1, "database_max_overflow": 0}
    with WorkerServices.open(settings.model_copy(update=one_connection)) as caller:
        job = caller.jobs.enqueue_generation("x")
        assert row(caller, job).published_at is not None
        with Session(caller.ledger.engine) as session:
            caller.jobs.enqueue_generation("y", session=session)
            session.commit()
        assert caller.redis.llen("generation") == 2
