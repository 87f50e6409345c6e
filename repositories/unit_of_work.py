"""The unit of work: one transaction, and the repositories within it."""

from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from typing import TypeVar

from sqlalchemy import text
from sqlalchemy.orm import Session
from sqlalchemy.pool import PoolProxiedConnection

from promptstack.repositories.access.api_keys import ApiKeyRepository
from promptstack.repositories.access.presented_keys import PresentedKeyRepository
from promptstack.repositories.access.sessions import RefreshTokenRepository, SessionRepository
from promptstack.repositories.access.sql_roles import SqlRoleRepository
from promptstack.repositories.access.users import UserRepository
from promptstack.repositories.after_commit import AfterCommit
from promptstack.repositories.audit import AuditRepository
from promptstack.repositories.batches import BatchRepository
from promptstack.repositories.budgets.budgets import BudgetRepository
from promptstack.repositories.budgets.counting import BudgetCounting
from promptstack.repositories.content.collections import CollectionRepository
from promptstack.repositories.content.documents import DocumentRepository
from promptstack.repositories.content.embeddings import EmbeddingRepository
from promptstack.repositories.content.passages import PassageRepository
from promptstack.repositories.content.query_vectors import QueryVectorRepository
from promptstack.repositories.content.reservations import ReservationRepository
from promptstack.repositories.content.unused import UnusedContentRepository
from promptstack.repositories.content.words import WordRepository
from promptstack.repositories.files import FileRepository
from promptstack.repositories.flags import FlagRepository
from promptstack.repositories.idempotency import IdempotencyRepository
from promptstack.repositories.jobs.attempts import AttemptRepository
from promptstack.repositories.jobs.celery_messages import CeleryMessageRepository
from promptstack.repositories.jobs.heartbeats import HeartbeatRepository
from promptstack.repositories.jobs.held_jobs import HeldJobRepository
from promptstack.repositories.jobs.jobs import JobRepository
from promptstack.repositories.jobs.maintenance import MaintenanceRepository
from promptstack.repositories.jobs.new_jobs import NewJobRepository
from promptstack.repositories.jobs.operations import OperationRepository
from promptstack.repositories.jobs.outbox import OutboxRepository
from promptstack.repositories.jobs.steps import StepRepository
from promptstack.repositories.jobs.unchecked_jobs import UncheckedJobRepository
from promptstack.repositories.jobs.workers import WorkerRepository
from promptstack.repositories.notifications import DeliveryRepository
from promptstack.repositories.responses import ResponseRepository
from promptstack.repositories.runs.answers import AnswerRepository
from promptstack.repositories.runs.backlog import BacklogRepository
from promptstack.repositories.runs.items import ItemRepository
from promptstack.repositories.runs.maintenance import RunMaintenanceRepository
from promptstack.repositories.runs.outcomes import OutcomeRepository
from promptstack.repositories.runs.results import RunResultRepository
from promptstack.repositories.runs.runs import RunRepository
from promptstack.repositories.runs.scheduling import SchedulingRepository
from promptstack.repositories.signs import SignsRepository
from promptstack.repositories.timeouts import IDLE_LIMIT
from promptstack.repositories.turns import TurnsRepository
from promptstack.repositories.usage import UsageRepository
from promptstack.repositories.webhooks.deliveries import WebhookDeliveryRepository
from promptstack.repositories.webhooks.endpoints import WebhookRepository
from promptstack.repositories.webhooks.sending import SendingRepository

_NOW = text("SELECT clock_timestamp()")
_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(hashtext(:name))")

Item = TypeVar("Item")
Repository = TypeVar("Repository")


def _lazy(repository: Callable[[Session], Repository]) -> "cached_property[Repository]":
    return cached_property(lambda unit: repository(unit.session))


class SingleStatement:
    """What can be done by one statement, which is a transaction by itself."""

    def __init__(self, connection: PoolProxiedConnection) -> None:
        self.new_jobs = NewJobRepository(connection)
        self.signs = SignsRepository(connection)
        self.heartbeats = HeartbeatRepository(connection)
        self.presented_keys = PresentedKeyRepository(connection)


class UnitOfWork:
    """Repositories over one session, which all see and belong to one transaction."""

    users = _lazy(UserRepository)
    api_keys = _lazy(ApiKeyRepository)
    sessions = _lazy(SessionRepository)
    sql_roles = _lazy(SqlRoleRepository)
    refresh_tokens = _lazy(RefreshTokenRepository)
    jobs = _lazy(JobRepository)
    steps = _lazy(StepRepository)
    celery_messages = _lazy(CeleryMessageRepository)
    unchecked_jobs = _lazy(UncheckedJobRepository)
    outbox = _lazy(OutboxRepository)
    operations = _lazy(OperationRepository)
    held_jobs = _lazy(HeldJobRepository)
    files = _lazy(FileRepository)
    flags = _lazy(FlagRepository)
    attempts = _lazy(AttemptRepository)
    budgets = _lazy(BudgetRepository)
    budget_counting = _lazy(BudgetCounting)
    collections = _lazy(CollectionRepository)
    query_vectors = _lazy(QueryVectorRepository)
    unused_contents = _lazy(UnusedContentRepository)
    documents = _lazy(DocumentRepository)
    embeddings = _lazy(EmbeddingRepository)
    passages = _lazy(PassageRepository)
    words = _lazy(WordRepository)
    runs = _lazy(RunRepository)
    batches = _lazy(BatchRepository)
    scheduling = _lazy(SchedulingRepository)
    backlog = _lazy(BacklogRepository)
    run_maintenance = _lazy(RunMaintenanceRepository)
    items = _lazy(ItemRepository)
    outcomes = _lazy(OutcomeRepository)
    results = _lazy(RunResultRepository)
    answers = _lazy(AnswerRepository)
    usage = _lazy(UsageRepository)
    maintenance = _lazy(MaintenanceRepository)
    reservations = _lazy(ReservationRepository)
    workers = _lazy(WorkerRepository)
    audit = _lazy(AuditRepository)
    turns = _lazy(TurnsRepository)
    deliveries = _lazy(DeliveryRepository)
    webhooks = _lazy(WebhookRepository)
    webhook_deliveries = _lazy(WebhookDeliveryRepository)
    webhook_sending = _lazy(SendingRepository)
    idempotency_keys = _lazy(IdempotencyRepository)
    responses = _lazy(ResponseRepository)

    def __init__(self, session: Session) -> None:
        self.session = session

    @property
    def new_jobs(self) -> NewJobRepository:
        """New jobs. It goes past the session, whose changes are sent first."""
        self.session.flush()
        return NewJobRepository(self.session.connection().connection)

    @property
    def heartbeats(self) -> HeartbeatRepository:
        """Heartbeats, in this transaction."""
        return HeartbeatRepository(self.session.connection().connection)

    def now(self) -> datetime:
        """The database's clock."""
        now: datetime = self.session.execute(_NOW).scalar_one()
        return now

    def try_lock(self, name: str) -> bool:
        """Take a lock that one transaction at a time can have; False when another has it."""
        return bool(self.session.scalar(_TRY_LOCK, {"name": name}))

    def limit_statements(self, seconds: float, *, idle: float | None = None) -> None:
        """Let no statement of this transaction take longer: PostgreSQL ends one that does.

        With `idle`, PostgreSQL also ends a transaction that waits so long for its next statement,
        as that of a frozen process does.
        """
        limits = {"statement_timeout": seconds} | ({} if idle is None else {IDLE_LIMIT: idle})
        self._set(**limits)

    def limit_locks(self, seconds: float) -> None:
        """Let no statement of this transaction wait longer for a lock."""
        self._set(lock_timeout=seconds)

    def _set(self, **limits: float) -> None:
        each = (f"SET LOCAL {name} = {int(seconds * 1000)}" for name, seconds in limits.items())
        self.session.connection().exec_driver_sql("; ".join(each))

    def after_commit(self, action: Callable[[list[Item]], None], *items: Item) -> None:
        """Run `action` once the outermost transaction is committed, and never if it isn't.

        It runs once, with all the items that were given for it.
        """
        savepoint = self.session.get_nested_transaction()
        waiting = AfterCommit.of(self.session)
        for item in items:
            waiting.add(savepoint, action, item)
