"""The composition root: settings become engines, clients and services here and nowhere else."""

from functools import cached_property, partial
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import uuid_utils.compat
from celery import Celery
from pydantic import SecretStr
from redis import Redis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from promptstack.config.errors import ConfigurationError
from promptstack.config.models_file import ModelsFile
from promptstack.config.network import check_network
from promptstack.config.providers import NamedProvider, Wire
from promptstack.config.settings import Settings, get_settings
from promptstack.embedded.servers import running
from promptstack.repositories.content.vector_indexes import VectorIndexes
from promptstack.repositories.models import JobKind
from promptstack.repositories.session import Ledger
from promptstack.services.accounting.prices import Prices
from promptstack.services.accounting.usage import UsageService
from promptstack.services.documents.chunking import Chunker
from promptstack.services.documents.embedding import EmbeddingService
from promptstack.services.documents.search import SearchService
from promptstack.services.execution.active_jobs import ActiveJobs
from promptstack.services.execution.backoff import Backoff
from promptstack.services.execution.executor import Executor, Handler
from promptstack.services.execution.generation import generate
from promptstack.services.execution.group_commit import GroupCommit
from promptstack.services.execution.heartbeat import Heartbeat
from promptstack.services.execution.provider_calls import ProviderCalls
from promptstack.services.execution.retrying_ledger import RetryingLedger
from promptstack.services.jobs.new_job import JobDefaults
from promptstack.services.jobs.progress import ProgressService
from promptstack.services.jobs.service import JobService
from promptstack.services.keys import KeyService
from promptstack.services.limiter.divided import DividedBuckets
from promptstack.services.limiter.limited_calls import LimitedCalls
from promptstack.services.limiter.limiter import RateLimiter
from promptstack.services.limiter.shared import SharedBuckets
from promptstack.services.limiter.terms import Limits
from promptstack.services.llm.event_loop import EventLoop
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.llm.learned import LearnedFacts
from promptstack.services.llm.pool import ProviderPool
from promptstack.services.maintenance.liveness import Liveness
from promptstack.services.maintenance.rate_limited_jobs import RateLimitedJobs
from promptstack.services.maintenance.reconciler import Reconciler, Retention
from promptstack.services.runs.intake.estimates import Estimator
from promptstack.services.runs.intake.new_run import RunDefaults
from promptstack.services.runs.progress import RunProgress
from promptstack.services.runs.results import RunResults
from promptstack.services.runs.scheduler import Dispatch
from promptstack.services.runs.service import RunService
from promptstack.services.runs.shards.slots import WorkerSlots
from promptstack.services.runs.shards.worker import ShardTools
from promptstack.services.runs.work import RunWork
from promptstack.services.sources.reading import SourceBounds
from promptstack.services.validation.request_bounds import JsonBounds, RequestBounds
from promptstack.services.validation.schema_bounds import SchemaBounds
from promptstack.tasks.app import create_app
from promptstack.tasks.connections import check_broker, check_redis
from promptstack.tasks.publisher import CeleryPublisher

REDIS_TIMEOUT_SECONDS = 2.0
LIMITER_CONNECTIONS = 50
LEASE_SECONDS = 20.0
"""After a worker's death, how long its calls still count as under way at the rate limit."""
CLOSING_ORDER = (
    "providers",
    "loop",
    "publisher",
    "celery",
    "redis",
    "heartbeat_ledger",
    "ledger",
)


class PromptStack:
    """Everything of one process, made when it is first used and closed together.

    >>> with PromptStack.open() as stack:
    ...     job = stack.jobs.enqueue_generation("Say hello.")
    """

    def __init__(self, settings: Settings, database_url: str, redis_url: str) -> None:
        self.settings = settings
        self.database_url = database_url
        self.redis_url = redis_url
        self.worker_id: UUID = uuid_utils.compat.uuid7()

    @classmethod
    def open(cls, settings: Settings | None = None) -> Self:
        """Wire the servers that settings name, or else the embedded ones that run here.

        Raises `ConfigurationError` where there is neither.
        """
        settings = settings or get_settings()
        database_url, redis_url = settings.database_url, settings.redis_url
        if database_url is None or redis_url is None:
            embedded = running(settings.state_dir)
            if embedded is None:
                raise ConfigurationError(
                    "Nothing is running here. Start it with `promptstack up`, or set "
                    "DATABASE_URL and REDIS_URL."
                )
            database_url = database_url or embedded.database_url
            redis_url = redis_url or embedded.redis_url
        return cls(settings, database_url, redis_url)

    def check_connections(self) -> None:
        """Raise `ConfigurationError` where a server will never be reached, or never takes us.

        For processes that stay, as they start; one that is only away is waited for.
        """
        for server in self.servers:
            if self.factory.is_set_up(server.name):
                check_network(server.wire, server.base_url)
        check_redis(self.redis)
        if self.settings.celery_broker_url:
            check_broker(self.celery, "CELERY_BROKER_URL")

    @cached_property
    def ledger(self) -> Ledger:
        """PostgreSQL."""
        return Ledger(
            self.database_url,
            pool_size=self.settings.database_pool_size,
            max_overflow=self.settings.database_max_overflow,
        )

    @cached_property
    def redis(self) -> Redis:
        """Redis, for progress and the broker's epoch."""
        return Redis.from_url(
            self.redis_url,
            decode_responses=True,
            socket_timeout=REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
            # Once, for a connection that a restarted Redis has closed; by default it would be
            # three times, after waits.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )

    @cached_property
    def celery(self) -> Celery:
        """The Celery app, without tasks until a worker registers them."""
        return create_app(self.settings, self.redis_url)

    @cached_property
    def publisher(self) -> CeleryPublisher:
        """Sends jobs' messages to workers."""
        return CeleryPublisher(create_app(self.settings, self.redis_url, results=False), self.redis)

    @cached_property
    def factory(self) -> LLMServiceFactory:
        """The providers, with the keys and addresses from settings and MODELS_FILE."""
        settings = self.settings
        keys = {
            "openai": settings.openai_api_key,
            "anthropic": settings.anthropic_api_key,
            "gemini": settings.gemini_api_key,
        }
        return LLMServiceFactory(
            {
                server.name: {
                    "api_key": _reveal(server.read_key() or keys.get(server.name)),
                    "base_url": server.base_url,
                    "api_version": server.api_version,
                    "timeout": settings.provider_timeout_seconds,
                    "learned": self.learned,
                }
                for server in self.servers
            },
            providers=self.servers,
            facts=self.models_file.models,
            none_can_ask=self._none_can_ask,
        )

    def _none_can_ask(self, provider: str) -> bool:
        with self.ledger.transaction() as unit:
            return unit.workers.none_can_ask(provider, self.settings.worker_lost_seconds)

    @cached_property
    def learned(self) -> LearnedFacts:
        """What refusals have taught of models."""
        return LearnedFacts(self.redis)

    @cached_property
    def servers(self) -> list[NamedProvider]:
        """The providers across a network: those that have their own settings, and those named."""
        settings, named = self.settings, {one.name: one for one in self.models_file.providers}
        addresses: dict[Wire, str | None] = {
            "openai": settings.openai_base_url,
            "anthropic": settings.anthropic_base_url,
            "gemini": settings.gemini_base_url,
        }
        for wire, address in addresses.items():
            server = named.get(wire) or NamedProvider(name=wire, wire=wire)
            if server.base_url is None:
                server = server.model_copy(update={"base_url": address})
            named[wire] = server
        return list(named.values())

    @cached_property
    def progress(self) -> ProgressService:
        """Where jobs stand."""
        return ProgressService(
            self.redis, self.ledger, ttl_seconds=self.settings.progress_ttl_seconds
        )

    @cached_property
    def jobs(self) -> JobService:
        """The enqueue API."""
        settings = self.settings
        defaults = JobDefaults(
            generation_provider=settings.default_llm_provider,
            embedding_provider=settings.default_embedding_provider,
            max_retries=settings.job_max_retries,
            expires_seconds=settings.job_expires_seconds,
            max_text_bytes=settings.max_text_bytes,
            request_bounds=self._request_bounds,
        )
        return JobService(self.ledger, self.publisher, self.progress, self.factory, defaults)

    @cached_property
    def _request_bounds(self) -> RequestBounds:
        settings = self.settings
        json_bounds = JsonBounds(
            settings.max_json_values, settings.max_json_depth, settings.max_option_bytes
        )
        return RequestBounds(json_bounds, self._schema_bounds)

    @cached_property
    def _schema_bounds(self) -> SchemaBounds:
        settings = self.settings
        return SchemaBounds(
            nodes=settings.max_schema_nodes,
            depth=settings.max_schema_depth,
            characters=settings.max_schema_characters,
            properties=settings.max_schema_properties,
            enum_members=settings.max_schema_enum_members,
            patterns=settings.max_schema_patterns,
            pattern_characters=settings.max_schema_pattern_characters,
            patterns_characters=settings.max_schema_patterns_characters,
            expanded=settings.max_schema_expanded,
            judging_steps=settings.max_judging_steps,
            judging_seconds=settings.max_judging_seconds,
        )

    @cached_property
    def keys(self) -> KeyService:
        """API keys."""
        return KeyService(self.ledger)

    @cached_property
    def usage(self) -> UsageService:
        """Usage and cost."""
        return UsageService(self.ledger)

    @cached_property
    def search(self) -> SearchService:
        """Search over what was embedded."""
        provider = self.settings.default_embedding_provider
        return SearchService(
            self.ledger,
            self.factory,
            self.providers,
            self.loop,
            self.limited_calls,
            default_provider=provider,
        )

    @cached_property
    def loop(self) -> EventLoop:
        """The event loop of provider calls."""
        return EventLoop()

    @cached_property
    def providers(self) -> ProviderPool:
        """The provider services."""
        return ProviderPool(self.factory, self.loop)

    @cached_property
    def active_jobs(self) -> ActiveJobs:
        """The jobs that this worker has in hand."""
        return ActiveJobs(self.loop)

    @cached_property
    def models_file(self) -> ModelsFile:
        """The providers that a person names, and what is said of models."""
        return ModelsFile.read(self.settings.models_file)

    @cached_property
    def limiter(self) -> RateLimiter:
        """The rate limiter that all workers share."""
        redis: AsyncRedis = AsyncRedis.from_pool(
            BlockingConnectionPool.from_url(
                self.redis_url,
                max_connections=LIMITER_CONNECTIONS,
                timeout=REDIS_TIMEOUT_SECONDS,
                decode_responses=True,
                socket_timeout=REDIS_TIMEOUT_SECONDS,
                socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
                # None: a call that a worker never heard the answer of may have been granted.
                retry=AsyncRetry(NoBackoff(), 0),
            )
        )
        return RateLimiter(
            SharedBuckets(redis),
            DividedBuckets(self.heartbeat.live_workers),
            self.models_file.limits,
            patience_seconds=self.settings.limiter_patience_seconds,
            lease_seconds=LEASE_SECONDS,
        )

    @cached_property
    def limited_calls(self) -> LimitedCalls:
        """Provider calls within their limits."""
        return LimitedCalls(
            self.limiter,
            timeout_seconds=self.settings.provider_timeout_seconds,
            most_wait_seconds=self.settings.retry_after_max_seconds,
        )

    @cached_property
    def retrying_ledger(self) -> RetryingLedger:
        """The ledger as workers use it."""
        return RetryingLedger(self.ledger, self.active_jobs)

    @cached_property
    def group_commit(self) -> GroupCommit:
        """What makes the steps of many jobs together."""
        return GroupCommit(self.ledger, self.worker_id)

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
            loop=self.loop,
            calls=self.limited_calls,
            prices=self.prices,
            backoff=self.backoff,
        )

    @cached_property
    def executor(self) -> Executor:
        """What every job goes through."""
        handlers = {
            JobKind.GENERATION: Handler(partial(generate, self.provider_calls)),
            JobKind.EMBEDDING: Handler(self.embedding.embed),
            # A shard that is done makes room for the next one.
            JobKind.SHARD: Handler(self.run_work.run_shard, after=self.dispatch.wake),
            JobKind.FINALIZATION: Handler(self.run_work.finalize),
        }
        return Executor(
            self.retrying_ledger,
            self.group_commit,
            self.active_jobs,
            handlers,
            self.provider_calls,
            progress=self.progress,
            backoff=self.backoff,
            heartbeat=self.heartbeat,
            worker_id=self.worker_id,
        )

    @cached_property
    def chunker(self) -> Chunker:
        """What cuts documents."""
        return Chunker(self.settings.chunk_tokens, self.settings.chunk_overlap_tokens)

    @cached_property
    def embedding(self) -> EmbeddingService:
        """Does embedding jobs."""
        return EmbeddingService(
            self.provider_calls,
            self.providers,
            self.chunker,
            shares_vectors=self.settings.share_vectors,
        )

    @cached_property
    def prices(self) -> Prices:
        """What calls cost."""
        return Prices(
            self.models_file.prices, {server.name: server.priced_as for server in self.servers}
        )

    @cached_property
    def run_progress(self) -> RunProgress:
        """Where runs stand."""
        return RunProgress(self.redis, self.ledger, ttl_seconds=self.settings.progress_ttl_seconds)

    @cached_property
    def dispatch(self) -> Dispatch:
        """What gives out the shards of runs."""
        settings = self.settings
        return Dispatch(
            self.ledger,
            self.publisher,
            self.run_progress,
            # A worker full of shards would let interactive jobs wait until one is done.
            shard_bytes=settings.shard_bytes,
            shards_a_worker=max(1, min(settings.worker_shards, settings.worker_concurrency - 1)),
            worker_lost_seconds=settings.worker_lost_seconds,
            max_retries=settings.job_max_retries,
        )

    @cached_property
    def vector_indexes(self) -> VectorIndexes:
        """What builds the indexes of vectors."""
        return VectorIndexes(self.ledger)

    @cached_property
    def runs(self) -> RunService:
        """Runs."""
        settings = self.settings
        defaults = RunDefaults(
            generation_provider=settings.default_llm_provider,
            embedding_provider=settings.default_embedding_provider,
            max_retries=settings.job_max_retries,
            expires_seconds=settings.run_expires_seconds,
            in_flight=settings.run_in_flight,
            max_text_bytes=settings.max_text_bytes,
            block_bytes=settings.run_block_bytes,
            request_bounds=self._request_bounds,
            source_bounds=SourceBounds(
                settings.max_template_bytes,
                settings.max_template_places,
                settings.max_record_values,
                settings.max_source_part_bytes,
            ),
        )
        return RunService(
            self.ledger,
            self.factory,
            self.dispatch,
            self.run_progress,
            self.prices,
            estimator=Estimator(self.ledger, self.factory, self.prices, self._limits_of),
            indexes=self.vector_indexes,
            defaults=defaults,
        )

    def _limits_of(self, provider: str, model: str) -> Limits:
        service = self.providers.get(provider)
        return self.loop.run(self.limited_calls.limits(service, model))

    @cached_property
    def run_results(self) -> RunResults:
        """The output of runs."""
        return RunResults(self.ledger)

    @cached_property
    def shard_tools(self) -> ShardTools:
        """What all shards of this worker use."""
        return ShardTools(
            calls=self.limited_calls,
            slots=WorkerSlots(),
            backoff=self.backoff,
            show_run=self.run_progress.show,
        )

    @cached_property
    def run_work(self) -> RunWork:
        """Works on shards, and ends runs."""
        return RunWork(
            self.providers,
            self.dispatch,
            self.run_progress,
            self.shard_tools,
            indexes=self.vector_indexes,
            prices=self.prices,
            storage=self.settings.vector_type,
            schema_bounds=self._schema_bounds,
        )

    @cached_property
    def heartbeat_ledger(self) -> Ledger:
        """Connections that no job can keep from the heartbeat, nor from what frees the dead."""
        silence = max(1, int(self.settings.worker_lost_seconds / 3))
        return Ledger(self.database_url, pool_size=2, max_overflow=0, silence=silence)

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
    def rate_limited_jobs(self) -> RateLimitedJobs:
        """The jobs that wait for a rate limit."""
        return RateLimitedJobs(self.ledger, self.providers, self.limited_calls, self.loop)

    @cached_property
    def liveness(self) -> Liveness:
        """What frees the jobs of dead workers and ends overdue ones."""
        return Liveness(
            self.heartbeat_ledger, worker_lost_seconds=self.settings.worker_lost_seconds
        )

    @cached_property
    def reconciler(self) -> Reconciler:
        """What puts lost things right."""
        return Reconciler(
            self.ledger,
            self.publisher,
            self.progress,
            self.rate_limited_jobs,
            self.dispatch,
            liveness=self.liveness,
            retention=Retention(
                self.settings.job_retention_seconds, self.settings.attempt_retention_seconds
            ),
        )

    def close(self) -> None:
        """Close what was opened, in the order that nothing is used after it is closed."""
        limiter: RateLimiter | None = self.__dict__.pop("limiter", None)
        if limiter is not None:
            self.loop.run(limiter.aclose())
        for name in CLOSING_ORDER:
            opened: Any = self.__dict__.pop(name, None)
            if opened is not None:
                opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _reveal(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None
