"""The composition root of callers: settings become engines, clients and services.

What only workers need is in `worker_services`; nothing else makes services.
"""

from contextlib import ExitStack, closing
from datetime import timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Self

from redis import Redis

from promptstack.config.models_file import ModelsFile
from promptstack.config.network import check_network
from promptstack.config.providers import NamedProvider
from promptstack.config.settings import Settings, get_settings
from promptstack.config.smtp_url import SmtpUrl
from promptstack.repositories.session import Ledger
from promptstack.repositories.usage import Usage
from promptstack.repositories.vector_indexes import VectorIndexes
from promptstack.services.access.access_tokens import AccessTokens
from promptstack.services.access.attempt_limits import AttemptLimits
from promptstack.services.access.keys import KeyService
from promptstack.services.access.owners import Owners
from promptstack.services.access.passwords import Passwords
from promptstack.services.access.request_limits import RequestLimits
from promptstack.services.access.sessions import SessionService
from promptstack.services.access.sign_in import SignIn
from promptstack.services.access.signing import SigningKeys
from promptstack.services.access.sql_roles import SqlRoleService
from promptstack.services.access.users import UserService
from promptstack.services.accounting.prices import Prices, maker_of
from promptstack.services.accounting.recent_usage import RecentUsage
from promptstack.services.accounting.usage import UsageService
from promptstack.services.audit.log import AuditLog
from promptstack.services.budgets.service import BudgetService
from promptstack.services.cache.cache import Cache
from promptstack.services.cache.codec import Codec
from promptstack.services.collections.service import CollectionService
from promptstack.services.documents.chunking import Chunker
from promptstack.services.documents.query_vectors import QueryVectors
from promptstack.services.documents.search import SearchService
from promptstack.services.documents.service import DocumentService
from promptstack.services.files.service import FileService
from promptstack.services.flags.flags import FeatureFlags
from promptstack.services.flags.service import FlagService
from promptstack.services.jobs.progress import ProgressService
from promptstack.services.jobs.service import JobService
from promptstack.services.jobs.waits import JobWaits
from promptstack.services.limiter.divided import DividedBuckets
from promptstack.services.limiter.limited_calls import LimitedCalls
from promptstack.services.limiter.limiter import RateLimiter
from promptstack.services.limiter.shared import SharedBuckets
from promptstack.services.limiter.terms import Limits
from promptstack.services.llm.answers import Capability
from promptstack.services.llm.event_loop import EventLoop
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.llm.learned import LearnedFacts
from promptstack.services.llm.model_names import ModelNames
from promptstack.services.llm.pool import ProviderPool
from promptstack.services.llm.request_bounds import RequestBounds
from promptstack.services.maintenance.rate_limited_jobs import RateLimitedJobs
from promptstack.services.notifications.run_ends import RunEnds
from promptstack.services.notifications.service import NotificationService
from promptstack.services.objects.storage import ObjectStorage
from promptstack.services.operations.service import OperationService
from promptstack.services.overview import Counts, Overview, ProviderStatus
from promptstack.services.responses.service import ResponseService
from promptstack.services.runs.lifecycle import RunLifecycle
from promptstack.services.runs.outputs import RunOutputs
from promptstack.services.runs.progress import RunProgress
from promptstack.services.runs.results import RunResults
from promptstack.services.runs.scheduler import ShardScheduler
from promptstack.services.sharing.bulk_jobs import BulkJobs
from promptstack.services.streams.reader import TextStreams
from promptstack.services.vectors.service import VectorService
from promptstack.services.webhooks.deliveries import DeliveryLog
from promptstack.services.webhooks.secrets import PURPOSE, SecretBox
from promptstack.services.webhooks.service import WebhookService
from promptstack.tasks import connections, from_settings
from promptstack.tasks.batch_services import Contents, open_batches, open_file_costs
from promptstack.tasks.redis_publisher import RedisPublisher

if TYPE_CHECKING:
    # Imported by the properties that make them: Celery, and what checks the schemas of runs, take
    # long to load, and many callers need neither.
    from celery import Celery

    from promptstack.services.batches.costs import FileCosts
    from promptstack.services.batches.service import BatchService
    from promptstack.services.events.hub import EventHub
    from promptstack.services.notifications.mailer import Mailer
    from promptstack.services.runs.downloads import RunDownloads
    from promptstack.services.runs.feasibility import Feasibility
    from promptstack.services.runs.intake.estimates import Estimator
    from promptstack.services.runs.service import RunService
    from promptstack.tasks.celery_publisher import CeleryPublisher

CACHED_CLASSES = (Usage, Counts, ProviderStatus)
"""The classes of what is cached: it is read back as these and no others."""
LEASE_SECONDS = 20.0
"""After a worker's death, how long its calls still count as under way at the rate limit."""


class PromptStack:
    """What a caller needs, made when it is first used and closed together.

    >>> with PromptStack.open() as stack:
    ...     job = stack.jobs.enqueue_generation("Say hello.")
    """

    def __init__(self, settings: Settings, database_url: str, redis_url: str) -> None:
        self.settings = settings
        self.database_url = database_url
        self.redis_url = redis_url
        self._exit_stack = ExitStack()

    @classmethod
    def open(cls, settings: Settings | None = None) -> Self:
        """Wire the servers that settings name, or else the embedded ones that run here.

        Raises `ConfigurationError` where there is neither.
        """
        settings = settings or get_settings()
        return cls(settings, *from_settings.server_urls(settings))

    def check_connections(self) -> None:
        """Raise `ConfigurationError` where a server will never be reached, or never takes us.

        For processes that stay, as they start; one that is only away is waited for.
        """
        for server in self.servers:
            if self.factory.is_set_up(server.name):
                check_network(server.wire, server.base_url)
        connections.check_redis(self.redis)
        if self.settings.celery_broker_url:
            connections.check_broker(self.celery, "CELERY_BROKER_URL")

    @cached_property
    def ledger(self) -> Ledger:
        """PostgreSQL."""
        ledger = Ledger(
            self.database_url,
            pool_size=self.settings.database_pool_size,
            max_overflow=self.settings.database_max_overflow,
        )
        return self._exit_stack.enter_context(closing(ledger))

    @cached_property
    def redis(self) -> Redis:
        """Redis, for progress and the broker's epoch."""
        return self._exit_stack.enter_context(closing(connections.open_redis(self.redis_url)))

    @cached_property
    def celery(self) -> "Celery":
        """The Celery app, without tasks until a worker registers them."""
        from promptstack.tasks.app import create_app  # noqa: PLC0415

        return self._exit_stack.enter_context(closing(create_app(self.settings, self.redis_url)))

    @cached_property
    def publisher(self) -> "CeleryPublisher | RedisPublisher":
        """Sends jobs' messages to workers."""
        if not self.settings.celery_broker_url:
            return RedisPublisher(self.redis)
        from promptstack.tasks.app import create_app  # noqa: PLC0415
        from promptstack.tasks.celery_publisher import CeleryPublisher  # noqa: PLC0415

        app = create_app(self.settings, self.redis_url, results=False)
        return self._exit_stack.enter_context(closing(CeleryPublisher(app, self.redis)))

    @cached_property
    def factory(self) -> LLMServiceFactory:
        """The providers, with the keys and addresses from settings and MODELS_FILE."""
        return LLMServiceFactory(
            from_settings.client_options(self.settings, self.servers, self.learned),
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
        return from_settings.servers(self.settings, self.models_file)

    @cached_property
    def progress(self) -> ProgressService:
        """Where jobs stand."""
        return ProgressService(
            self.redis, self.ledger, ttl_seconds=self.settings.progress_ttl_seconds
        )

    @cached_property
    def jobs(self) -> JobService:
        """The enqueue API."""
        defaults = from_settings.job_defaults(self.settings, self._request_bounds)
        return JobService(
            self.ledger,
            self.publisher,
            self.progress,
            self.factory,
            defaults,
            waits=JobWaits(self.factory, self.settings.worker_lost_seconds),
            texts=self.text_streams,
            after_bulk=self.bulk_jobs.after_enqueue,
        )

    @cached_property
    def responses(self) -> ResponseService:
        """Responses of OpenAI's Responses API."""
        return ResponseService(self.ledger, self.jobs, self.model_names, self.factory)

    @cached_property
    def operations(self) -> OperationService:
        """What is done to many jobs at once."""
        lifetime = self.settings.job_expires_seconds
        return OperationService(self.ledger, self.publisher, expires_seconds=lifetime)

    @cached_property
    def bulk_jobs(self) -> BulkJobs:
        """What sends bulk jobs to workers."""
        settings = self.settings
        bulk_jobs = BulkJobs(
            self.ledger,
            self.publisher,
            jobs_a_worker=settings.worker_concurrency,
            worker_lost_seconds=settings.worker_lost_seconds,
            weights=settings.tier_weights,
            pace=self.jobs_a_second,
        )
        return self._exit_stack.enter_context(closing(bulk_jobs))

    def jobs_a_second(self) -> float:
        """At what pace jobs end here; a caller ends none."""
        return 0.0

    @cached_property
    def _request_bounds(self) -> RequestBounds:
        return from_settings.request_bounds(self.settings)

    @cached_property
    def keys(self) -> KeyService:
        """API keys."""
        return KeyService(self.ledger)

    @cached_property
    def sql_roles(self) -> SqlRoleService:
        """Roles of the database that enqueue in SQL."""
        return SqlRoleService(self.ledger)

    @cached_property
    def audit(self) -> AuditLog:
        """The audit log."""
        return AuditLog(self.ledger)

    @cached_property
    def passwords(self) -> Passwords:
        """What judges and hashes passwords."""
        return Passwords()

    @cached_property
    def users(self) -> UserService:
        """Users."""
        return UserService(self.ledger, self.audit, self.passwords, self.factory)

    @cached_property
    def sessions(self) -> SessionService:
        """Sessions of who has signed in."""
        settings = self.settings
        tokens = AccessTokens(
            self._signing_keys("access-tokens"),
            lifetime_seconds=60 * settings.access_token_expire_minutes,
        )
        return SessionService(
            self.ledger,
            self.audit,
            tokens,
            self._signing_keys("csrf"),
            lifetime=timedelta(days=settings.refresh_token_expire_days),
        )

    @cached_property
    def sign_in(self) -> SignIn:
        """The ways to sign in."""
        return SignIn(
            self.ledger,
            self.audit,
            self.passwords,
            AttemptLimits(self.redis, self._signing_keys("attempts")),
            self.sessions,
            proxy_creates_users=self.settings.trusted_identity_creates_users,
        )

    def _signing_keys(self, purpose: str) -> SigningKeys:
        secrets = [self.settings.secret_key, self.settings.previous_secret_key]
        return SigningKeys(purpose, [one.get_secret_value() for one in secrets if one])

    @cached_property
    def request_limits(self) -> RequestLimits:
        """How many requests an API key may send."""
        return RequestLimits(self.redis)

    @cached_property
    def owners(self) -> Owners:
        """Whose objects a caller may list."""
        return Owners(self.ledger)

    @cached_property
    def budgets(self) -> BudgetService:
        """Spend caps."""
        return BudgetService(self.ledger)

    @cached_property
    def notifications(self) -> NotificationService:
        """Mails to users."""
        defaults = from_settings.mail_defaults(self.settings)
        return NotificationService(self.ledger, self.publisher, defaults)

    @cached_property
    def mailer(self) -> "Mailer | None":
        """The connections to the mail server; None where none is set."""
        if self.settings.smtp_url is None:
            return None
        from promptstack.services.notifications.mailer import Mailer  # noqa: PLC0415

        mailer = Mailer(
            SmtpUrl.parse(self.settings.smtp_url.get_secret_value()),
            timeout_seconds=self.settings.mail_timeout_seconds,
            retry_seconds=self.settings.mail_retry_seconds,
            ca_file=str(self.settings.tls_ca_file) if self.settings.tls_ca_file else None,
        )
        loop = self.loop
        self._exit_stack.callback(lambda: loop.run(mailer.aclose()))
        return mailer

    @cached_property
    def run_ends(self) -> RunEnds:
        """What tells users how their runs ended."""
        return RunEnds(self.notifications)

    @cached_property
    def webhook_secrets(self) -> SecretBox:
        """What encrypts the secrets of webhooks."""
        return SecretBox([key.secret for key in self._signing_keys(PURPOSE)])

    @cached_property
    def webhooks(self) -> WebhookService:
        """Where the ends of jobs and runs are told to."""
        return WebhookService(
            self.ledger,
            self.webhook_secrets,
            from_settings.webhook_rules(self.settings),
            most_endpoints=self.settings.webhook_endpoints,
        )

    @cached_property
    def webhook_deliveries(self) -> DeliveryLog:
        """What was sent to webhooks."""
        return DeliveryLog(self.ledger)

    @cached_property
    def usage(self) -> UsageService:
        """Usage and cost."""
        return UsageService(self.ledger)

    @cached_property
    def recent_usage(self) -> RecentUsage:
        """Usage that may be some seconds old."""
        return RecentUsage(self.usage, self.cache, self.settings.usage_cache_seconds)

    @cached_property
    def overview(self) -> Overview:
        """The deployment at a glance."""
        return Overview(
            self.ledger,
            self.cache,
            self.factory,
            self.providers,
            self.loop,
            worker_lost_seconds=self.settings.worker_lost_seconds,
        )

    @cached_property
    def text_streams(self) -> TextStreams:
        """Texts of generations as they are produced."""
        return TextStreams(self.redis)

    @cached_property
    def flags(self) -> FeatureFlags:
        """Whether features are on."""
        configured = from_settings.feature_flags(self.settings)
        return FeatureFlags(self.ledger, configured, self.settings.environment)

    @cached_property
    def flag_service(self) -> FlagService:
        """Feature flags for administrators."""
        return FlagService(self.ledger, self.flags, from_settings.feature_flags(self.settings))

    @cached_property
    def cache(self) -> Cache:
        """Answers that may be some seconds old."""
        return Cache(self.redis, Codec(CACHED_CLASSES), max_bytes=self.settings.cache_value_bytes)

    @cached_property
    def collections(self) -> CollectionService:
        """Collections of documents and runs."""
        return CollectionService(self.ledger)

    @cached_property
    def documents(self) -> DocumentService:
        """Documents."""
        return DocumentService(self.ledger, self.jobs)

    @cached_property
    def search(self) -> SearchService:
        """Search over what was embedded."""
        vectors = QueryVectors(
            self.ledger,
            self.providers,
            self.loop,
            self.limited_calls,
            self.prices,
            shares_vectors=self.settings.share_vectors,
        )
        provider = self.settings.default_embedding_provider
        return SearchService(self.ledger, self.factory, vectors, default_provider=provider)

    @cached_property
    def vectors(self) -> VectorService:
        """The vectors of inputs that somebody has waited for."""
        return VectorService(self.ledger, shares_vectors=self.settings.share_vectors)

    @cached_property
    def loop(self) -> EventLoop:
        """The event loop of provider calls."""
        return self._exit_stack.enter_context(closing(EventLoop()))

    @cached_property
    def providers(self) -> ProviderPool:
        """The provider services."""
        return self._exit_stack.enter_context(closing(ProviderPool(self.factory, self.loop)))

    @cached_property
    def models_file(self) -> ModelsFile:
        """The providers that a person names, and what is said of models."""
        return ModelsFile.read(self.settings.models_file)

    @cached_property
    def model_names(self) -> ModelNames:
        """Whom the names of models mean that clients of other APIs send."""
        defaults = {
            Capability.GENERATION: self.settings.default_llm_provider,
            Capability.EMBEDDING: self.settings.default_embedding_provider,
        }
        return ModelNames(self.factory, self.models_file, self.servers, defaults, maker_of=maker_of)

    @cached_property
    def limiter(self) -> RateLimiter:
        """The rate limiter that all workers share."""
        limiter = RateLimiter(
            SharedBuckets(
                connections.open_async_redis(self.redis_url),
                weights=self.settings.tier_weights,
            ),
            DividedBuckets(self.live_workers),
            self.models_file.limits,
            patience_seconds=self.settings.limiter_patience_seconds,
            lease_seconds=LEASE_SECONDS,
        )
        loop = self.loop
        self._exit_stack.callback(lambda: loop.run(limiter.aclose()))
        return limiter

    def live_workers(self) -> int:
        """How many share a rate limit while Redis is away; a caller knows of itself only."""
        return 1

    @cached_property
    def limited_calls(self) -> LimitedCalls:
        """Provider calls within their limits."""
        return LimitedCalls(
            self.limiter,
            timeout_seconds=self.settings.provider_timeout_seconds,
            most_wait_seconds=self.settings.retry_after_max_seconds,
        )

    @cached_property
    def chunker(self) -> Chunker:
        """What cuts documents."""
        return Chunker(self.settings.chunk_tokens, self.settings.chunk_overlap_tokens)

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
    def events(self) -> "EventHub":
        """What happens to jobs and runs, for those who watch on one event loop."""
        from promptstack.services.events.hub import EventHub  # noqa: PLC0415
        from promptstack.services.events.texts import TextFeed  # noqa: PLC0415
        from promptstack.services.events.topics import JobTopic, RunTopic  # noqa: PLC0415

        return EventHub(
            JobTopic(self.progress, self.ledger, self.jobs.waits_of),
            RunTopic(self.run_progress, self.ledger),
            TextFeed(self.redis, partial(connections.open_async_redis, self.redis_url, 1)),
            partial(connections.open_events_redis, self.redis_url),
            max_watchers=self.settings.max_watchers,
            max_watchers_of_user=self.settings.max_watchers_of_user,
        )

    @cached_property
    def shard_scheduler(self) -> ShardScheduler:
        """What cuts shards from runs."""
        settings = self.settings
        return ShardScheduler(
            self.ledger,
            self.publisher,
            # A worker full of shards would let interactive jobs wait until one is done.
            shard_bytes=settings.shard_bytes,
            shards_a_worker=max(1, min(settings.worker_shards, settings.worker_concurrency - 1)),
            worker_lost_seconds=settings.worker_lost_seconds,
            max_retries=settings.job_max_retries,
            weights=settings.tier_weights,
        )

    @cached_property
    def run_lifecycle(self) -> RunLifecycle:
        """What brings runs on and ends them."""
        return RunLifecycle(self.ledger, self.shard_scheduler, self.run_progress, self.run_ends)

    @cached_property
    def vector_indexes(self) -> VectorIndexes:
        """What builds the indexes of vectors."""
        return VectorIndexes(self.ledger)

    @cached_property
    def runs(self) -> "RunService":
        """Runs."""
        from promptstack.services.runs.service import RunService  # noqa: PLC0415

        return RunService(
            self.ledger,
            self.factory,
            self.run_lifecycle,
            self.run_progress,
            self._estimator,
            indexes=self.vector_indexes,
            defaults=from_settings.run_defaults(self.settings, self._request_bounds),
        )

    @cached_property
    def _estimator(self) -> "Estimator":
        from promptstack.services.runs.intake.estimates import Estimator  # noqa: PLC0415

        return Estimator(self.ledger, self.factory, self.prices, self._limits_of)

    @cached_property
    def feasibility(self) -> "Feasibility":
        """When runs can be done."""
        from promptstack.services.runs.feasibility import Feasibility  # noqa: PLC0415

        weights = self.settings.tier_weights
        return Feasibility(self.ledger, self._estimator, self._limits_of, weights)

    def _limits_of(self, provider: str, model: str) -> Limits:
        service = self.providers.get(provider)
        return self.loop.run(self.limited_calls.limits(service, model))

    @cached_property
    def run_results(self) -> RunResults:
        """The output of runs."""
        return RunResults(self.ledger)

    @cached_property
    def run_downloads(self) -> "RunDownloads":
        """The output of runs as files."""
        from promptstack.services.runs.downloads import RunDownloads  # noqa: PLC0415

        return RunDownloads(
            self.ledger,
            self.run_results,
            self.cache,
            guard_formulas=self.settings.csv_guard_formulas,
        )

    @cached_property
    def batches(self) -> "BatchService":
        """Files of requests that become runs."""
        return open_batches(self)

    @cached_property
    def file_costs(self) -> "FileCosts":
        """What batches of files would cost."""
        return open_file_costs(self)

    @cached_property
    def object_storage(self) -> ObjectStorage:
        """Where sources of runs are read, and their outputs written."""
        return ObjectStorage(from_settings.storage_options(self.settings))

    @cached_property
    def run_outputs(self) -> RunOutputs:
        """The outputs of runs in object storage."""
        return RunOutputs(self.object_storage, lambda: self.run_downloads)

    @cached_property
    def files(self) -> FileService:
        """Files of users."""
        return FileService(self.ledger, from_settings.file_bounds(self.settings), Contents(self))

    @cached_property
    def rate_limited_jobs(self) -> RateLimitedJobs:
        """The jobs that wait for a rate limit."""
        return RateLimitedJobs(
            self.ledger,
            self.providers,
            self.limited_calls,
            self.loop,
            weights=self.settings.tier_weights,
        )

    def close(self) -> None:
        """Close what was opened: first what was opened last, as it may use the others."""
        self._exit_stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
