"""The composition root of workers: what runs jobs, and what keeps them going."""

from collections.abc import Mapping
from contextlib import closing
from functools import cached_property, partial
from typing import TYPE_CHECKING
from uuid import UUID

import uuid_utils.compat

from promptstack.config.settings import Settings
from promptstack.repositories.models import JobKind
from promptstack.repositories.session import Ledger
from promptstack.services.batches.endings import BatchEndings
from promptstack.services.documents.chunk_sizes import Cutter
from promptstack.services.documents.embedding import DocumentEmbedder
from promptstack.services.execution.active_jobs import ActiveJobs
from promptstack.services.execution.backoff import Backoff
from promptstack.services.execution.bytes_in_flight import BytesInFlight
from promptstack.services.execution.ends import EndTeller
from promptstack.services.execution.executor import Executor, Handler
from promptstack.services.execution.generation import generate
from promptstack.services.execution.group_commit import GroupCommit
from promptstack.services.execution.heartbeat import Heartbeat
from promptstack.services.execution.job_context import JobContext
from promptstack.services.execution.job_slots import JobSlots
from promptstack.services.execution.job_threads import JobThreads
from promptstack.services.execution.late_checks import LateChecks
from promptstack.services.execution.provider_calls import ProviderCalls
from promptstack.services.execution.retrying_ledger import RetryingLedger
from promptstack.services.execution.sent_jobs import SentJobs
from promptstack.services.jobs.checks import JobChecks
from promptstack.services.maintenance.contents import ContentMaintenance
from promptstack.services.maintenance.liveness import Liveness
from promptstack.services.maintenance.new_jobs import NewJobs
from promptstack.services.maintenance.outbox import Outbox
from promptstack.services.maintenance.reconciler import Cleanup, Reconciler, Step
from promptstack.services.notifications.delivery import MailDelivery
from promptstack.services.operations.work import OperationWork
from promptstack.services.runs.handlers import RunWork
from promptstack.services.runs.maintenance import RunMaintenance
from promptstack.services.runs.shards.slots import WorkerSlots
from promptstack.services.runs.shards.worker import ShardTools
from promptstack.services.streams.writer import TextStreamWriter
from promptstack.services.vectors.embedding import InputEmbedder
from promptstack.services.webhooks.sender import WebhookSender
from promptstack.services.webhooks.upkeep import WebhookUpkeep
from promptstack.tasks import connections, from_settings
from promptstack.tasks.batch_services import open_endings, open_intake
from promptstack.tasks.composition import PromptStack
from promptstack.tasks.webhook_services import open_sender, open_upkeep

if TYPE_CHECKING:
    # It is imported by the first worker that needs it: it reads sources.
    from promptstack.services.batches.intake import BatchIntake


class WorkerServices(PromptStack):
    """What a worker needs: all that a caller has, and what runs jobs."""

    def __init__(self, settings: Settings, database_url: str, redis_url: str) -> None:
        super().__init__(settings, database_url, redis_url)
        self.worker_id: UUID = uuid_utils.compat.uuid7()

    def live_workers(self) -> int:
        """How many workers were alive at the last heartbeat."""
        return self.heartbeat.live_workers()

    def jobs_a_second(self) -> float:
        """At what pace jobs end in this worker."""
        return self.job_slots.ends_a_second

    @cached_property
    def active_jobs(self) -> ActiveJobs:
        """The jobs that this worker has in hand."""
        return ActiveJobs(self.loop)

    @cached_property
    def retrying_ledger(self) -> RetryingLedger:
        """The ledger as workers use it."""
        ledger = RetryingLedger(self.ledger, self.active_jobs)
        return self._exit_stack.enter_context(closing(ledger))

    @cached_property
    def group_commit(self) -> GroupCommit:
        """What makes the steps of many jobs together."""
        group = GroupCommit(self.ledger, self.retrying_ledger, self.worker_id)
        return self._exit_stack.enter_context(closing(group))

    @cached_property
    def backoff(self) -> Backoff:
        """How long what failed waits before it is tried again."""
        settings = self.settings
        return Backoff(settings.retry_backoff_seconds, settings.retry_backoff_max_seconds)

    @cached_property
    def provider_calls(self) -> ProviderCalls:
        """The provider calls of jobs."""
        return ProviderCalls(
            self.retrying_ledger,
            self.group_commit,
            self.providers,
            calls=self.limited_calls,
            slots=self.job_slots,
            prices=self.prices,
            backoff=self.backoff,
        )

    @cached_property
    def text_writer(self) -> TextStreamWriter:
        """What writes texts as they are produced."""
        redis = connections.open_async_redis(self.redis_url, connections=1)
        writer = TextStreamWriter(redis, from_settings.stream_bounds(self.settings))
        loop = self.loop
        self._exit_stack.callback(lambda: loop.run(writer.aclose()))
        return writer

    @cached_property
    def end_teller(self) -> EndTeller:
        """What tells at once that jobs have ended."""
        teller = EndTeller(connections.open_async_redis(self.redis_url, connections=1))
        loop = self.loop
        self._exit_stack.callback(lambda: loop.run(teller.aclose()))
        return teller

    @cached_property
    def job_slots(self) -> JobSlots:
        """How many jobs this worker has in hand."""
        return JobSlots(self.settings.worker_concurrency)

    @cached_property
    def job_threads(self) -> JobThreads:
        """The threads of shards and finalizations."""
        threads = JobThreads(self.settings.worker_concurrency)
        return self._exit_stack.enter_context(closing(threads))

    @cached_property
    def executor(self) -> Executor:
        """What every job goes through."""
        handlers = {
            JobKind.GENERATION: Handler(
                partial(generate, self.provider_calls, self.text_writer),
                after=self.bulk_jobs.after_job,
            ),
            JobKind.EMBEDDING: Handler(
                self.document_embedder.embed, after=self.bulk_jobs.after_job
            ),
            JobKind.VECTORS: Handler(self.input_embedder.embed, after=self.bulk_jobs.after_job),
            # A shard that is done makes room for the next one.
            JobKind.SHARD: Handler(
                self.job_threads.run(self.run_work.run_shard),
                after=self.job_threads.begin(self.run_lifecycle.wake),
            ),
            # The end of a run is the end of its batch.
            JobKind.FINALIZATION: Handler(
                self.job_threads.run(self.run_work.finalize),
                after=self.job_threads.begin(self.batch_endings.wake),
            ),
            JobKind.NOTIFICATION: Handler(self.mail_delivery.deliver),
            JobKind.OPERATION: Handler(self.job_threads.run(self._operation_work.run)),
            JobKind.BATCH: Handler(self.job_threads.run(self._take_batch_in)),
        }
        return Executor(
            self.retrying_ledger,
            self.group_commit,
            self.active_jobs,
            handlers,
            self.provider_calls,
            late_checks=self.late_checks,
            slots=self.job_slots,
            progress=self.progress,
            ends=self.end_teller,
            backoff=self.backoff,
            heartbeat=self.heartbeat,
        )

    @cached_property
    def sent_jobs(self) -> SentJobs:
        """Jobs that another service's Celery has sent."""
        return SentJobs(self.retrying_ledger, self.settings.celery_user)

    @cached_property
    def _operation_work(self) -> OperationWork:
        lifetime = self.settings.job_expires_seconds
        return OperationWork(self.ledger, self.publisher, self.progress, expires_seconds=lifetime)

    @cached_property
    def batch_intake(self) -> "BatchIntake":
        """What takes the files of batches in."""
        return open_intake(self)

    def _take_batch_in(self, job: JobContext) -> Mapping[str, object]:
        # Few workers ever do, so the first file makes what reads it.
        return self.batch_intake.run(job)

    @cached_property
    def batch_endings(self) -> BatchEndings:
        """What ends batches."""
        return open_endings(self)

    @cached_property
    def late_checks(self) -> LateChecks:
        """Checks jobs that were enqueued where our checks don't run."""
        defaults = from_settings.job_defaults(self.settings, self._request_bounds)
        checks = JobChecks(self.ledger, self.factory, defaults)
        return LateChecks(self.retrying_ledger, checks, defaults)

    @cached_property
    def mail_delivery(self) -> MailDelivery:
        """Sends the mails of notifications."""
        return MailDelivery(lambda: self.mailer, self.settings.mail_from)

    @cached_property
    def webhook_sender(self) -> WebhookSender:
        """Sends events to webhooks."""
        return self._exit_stack.enter_context(closing(open_sender(self)))

    @cached_property
    def webhook_upkeep(self) -> WebhookUpkeep:
        """What looks after webhooks."""
        return open_upkeep(self)

    @cached_property
    def cutter(self) -> Cutter:
        """Knows how each job's document is cut."""
        return Cutter(self.chunker, self.providers)

    @cached_property
    def document_embedder(self) -> DocumentEmbedder:
        """Does embedding jobs."""
        return DocumentEmbedder(
            self.provider_calls,
            self.providers,
            self.cutter,
            self.bytes_in_flight,
            shares_vectors=self.settings.share_vectors,
        )

    @cached_property
    def input_embedder(self) -> InputEmbedder:
        """Does jobs for vectors."""
        return InputEmbedder(
            self.provider_calls,
            self.providers,
            self.bytes_in_flight,
            shares_vectors=self.settings.share_vectors,
        )

    @cached_property
    def bytes_in_flight(self) -> BytesInFlight:
        """The memory that calls for vectors share."""
        return BytesInFlight(self.settings.worker_bytes_in_flight)

    @cached_property
    def shard_tools(self) -> ShardTools:
        """What all shards of this worker use."""
        return ShardTools(
            calls=self.limited_calls,
            slots=WorkerSlots(),
            weights=self.settings.tier_weights,
            memory=self.bytes_in_flight,
            backoff=self.backoff,
            show_run=self.run_progress.show,
        )

    @cached_property
    def run_work(self) -> RunWork:
        """Works on shards, and ends runs."""
        return RunWork(
            self.providers,
            self.shard_scheduler,
            self.run_progress,
            self.shard_tools,
            self.run_ends,
            outputs=self.run_outputs,
            indexes=self.vector_indexes,
            prices=self.prices,
            storage=self.settings.vector_type,
            schema_bounds=from_settings.schema_bounds(self.settings),
        )

    @cached_property
    def heartbeat_ledger(self) -> Ledger:
        """Connections that no job can keep from the heartbeat, nor from what frees the dead."""
        timeout = max(1, int(self.settings.worker_lost_seconds / 3))
        ledger = Ledger(self.database_url, pool_size=2, max_overflow=0, timeout_seconds=timeout)
        return self._exit_stack.enter_context(closing(ledger))

    @cached_property
    def heartbeat(self) -> Heartbeat:
        """The sign of life of this worker."""
        return Heartbeat(
            self.heartbeat_ledger,
            self.active_jobs,
            self.worker_id,
            providers=[one.name for one in self.servers if self.factory.is_set_up(one.name)],
            lost_seconds=self.settings.worker_lost_seconds,
        )

    @cached_property
    def liveness(self) -> Liveness:
        """What frees the jobs of dead workers and ends overdue ones."""
        return Liveness(
            self.heartbeat_ledger, worker_lost_seconds=self.settings.worker_lost_seconds
        )

    @cached_property
    def run_maintenance(self) -> RunMaintenance:
        """What ends overdue runs and deletes old ones."""
        return RunMaintenance(self.ledger, self.run_lifecycle, self.batch_endings.tend)

    @cached_property
    def content_maintenance(self) -> ContentMaintenance:
        """What deletes collections, and vectors that nobody uses."""
        return ContentMaintenance(
            self.ledger, self.run_lifecycle, query_seconds=self.settings.query_vector_seconds
        )

    @cached_property
    def outbox(self) -> Outbox:
        """What publishes jobs that need a message."""
        return Outbox(
            self.ledger,
            self.publisher,
            self.progress,
            rate_limited=self.rate_limited_jobs,
            bulk_jobs=self.bulk_jobs,
            liveness=self.liveness,
        )

    @cached_property
    def new_jobs(self) -> NewJobs:
        """What hears of jobs that were enqueued in SQL."""
        return NewJobs(self.heartbeat_ledger)

    @cached_property
    def cleanup(self) -> Cleanup:
        """What deletes what is old."""
        return Cleanup(
            self.ledger,
            jobs_seconds=self.settings.job_retention_seconds,
            attempts_seconds=self.settings.attempt_retention_seconds,
            audit_seconds=self.settings.audit_retention_seconds,
            keys_seconds=self.settings.idempotency_key_seconds,
            deliveries_seconds=self.settings.webhook_retention_seconds,
        )

    @cached_property
    def reconciler(self) -> Reconciler:
        """What puts lost things right."""
        retention = self.settings.job_retention_seconds
        maintain_runs = partial(self.run_maintenance.run_once, retention)
        return Reconciler(
            [
                Step("liveness", self.liveness.run_once),
                Step("messages", self.outbox.publish, is_woken=True),
                Step("cleanup", self.cleanup.run_once, rounds=10),
                Step("runs", maintain_runs),
                Step("contents", self.content_maintenance.run_once, rounds=5),
                Step("webhooks", self.webhook_sender.run_once, is_woken=True),
                Step("webhook upkeep", self.webhook_upkeep.run_once, rounds=10),
            ]
        )
