"""The unit of work: one transaction and the repositories within it. Only it commits."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, TypeVar

import psycopg2
from sqlalchemy import Connection, Engine, create_engine, event, func, select, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, ResourceClosedError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from promptstack.config.errors import PromptStackError
from promptstack.repositories.content.documents import DocumentRepository
from promptstack.repositories.content.embeddings import EmbeddingRepository
from promptstack.repositories.content.passages import PassageRepository
from promptstack.repositories.content.reservations import ReservationRepository
from promptstack.repositories.errors import (
    LedgerConflict,
    LedgerOutdated,
    LedgerReadOnly,
    LedgerSlow,
    LedgerUnavailable,
)
from promptstack.repositories.jobs.attempts import AttemptRepository
from promptstack.repositories.jobs.jobs import JobRepository
from promptstack.repositories.jobs.maintenance import MaintenanceRepository
from promptstack.repositories.jobs.outbox import OutboxRepository
from promptstack.repositories.jobs.steps import StepRepository
from promptstack.repositories.jobs.workers import WorkerRepository
from promptstack.repositories.jsonb import dump_jsonb
from promptstack.repositories.runs.answers import AnswerRepository
from promptstack.repositories.runs.items import ItemRepository
from promptstack.repositories.runs.maintenance import RunMaintenanceRepository
from promptstack.repositories.runs.outcomes import OutcomeRepository
from promptstack.repositories.runs.results import RunResultRepository
from promptstack.repositories.runs.runs import RunRepository
from promptstack.repositories.runs.scheduling import SchedulingRepository
from promptstack.repositories.usage import UsageRepository
from promptstack.repositories.users import ApiKeyRepository, UserRepository

CONNECT_TIMEOUT_SECONDS = 5
SILENCE_SECONDS = 15
IDLE_SECONDS = 5
"""How long a transaction may wait for its next statement: a process that was frozen in the middle
of one would else keep its locks, and everybody who wants them waiting."""
IDLE_LIMIT = "idle_in_transaction_session_timeout"
CONFLICTS = frozenset({"40001", "40P01", "55P03"})
"""PostgreSQL's codes for a serialization failure, a deadlock, a lock that isn't free."""
NO_WRITES = frozenset({"25006", "53100"})
"""PostgreSQL's codes for a standby and for a full disk."""
TOO_IDLE, TOO_LONG = "25P03", "57014"
SLOWNESS = {
    TOO_IDLE: f"This process did nothing for {IDLE_SECONDS} s in the middle of a transaction, so "
    "the database ended it: the machine is too busy, or the step is too large.",
    TOO_LONG: "A statement took longer than it may, so the database ended it: it is too busy, or "
    "somebody else holds what the statement needs.",
}
"""By its codes for a transaction that was idle too long, and a statement that was cancelled. It is
no outage: who says so sends people to look in the wrong place, and waits for its end."""
OUTAGES = ("08", "53", "57", "58")
"""How its codes begin for a lost connection, too many connections, a shutdown, an error of its
machine."""
OUTDATED_SCHEMA = frozenset({"42P01", "42703"})
"""PostgreSQL's codes for a table and a column that don't exist."""
_ASKED, _ANSWERED = "promptstack.asked", "promptstack.answered"
"""When a connection's last statement or commit was sent, and when a statement was answered."""
_AFTER_COMMIT = "promptstack.after_commit"
_POOLED = "promptstack.pooled"

Item = TypeVar("Item")


class UnitOfWork:
    """The repositories over one session, which all see and belong to one transaction."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @cached_property
    def users(self) -> UserRepository:
        """Users."""
        return UserRepository(self.session)

    @cached_property
    def api_keys(self) -> ApiKeyRepository:
        """Keys to the HTTP door."""
        return ApiKeyRepository(self.session)

    @cached_property
    def jobs(self) -> JobRepository:
        """Jobs."""
        return JobRepository(self.session)

    @cached_property
    def steps(self) -> StepRepository:
        """Changes of jobs' states."""
        return StepRepository(self.session)

    @cached_property
    def outbox(self) -> OutboxRepository:
        """Jobs' messages."""
        return OutboxRepository(self.session)

    @cached_property
    def attempts(self) -> AttemptRepository:
        """Calls to providers."""
        return AttemptRepository(self.session)

    @cached_property
    def documents(self) -> DocumentRepository:
        """Documents and chunks."""
        return DocumentRepository(self.session)

    @cached_property
    def embeddings(self) -> EmbeddingRepository:
        """Models and vectors."""
        return EmbeddingRepository(self.session)

    @cached_property
    def passages(self) -> PassageRepository:
        """Chunks and items by their vectors."""
        return PassageRepository(self.session)

    @cached_property
    def runs(self) -> RunRepository:
        """Runs."""
        return RunRepository(self.session)

    @cached_property
    def scheduling(self) -> SchedulingRepository:
        """Runs as the scheduler sees them."""
        return SchedulingRepository(self.session)

    @cached_property
    def run_maintenance(self) -> RunMaintenanceRepository:
        """Runs that must be ended or deleted."""
        return RunMaintenanceRepository(self.session)

    @cached_property
    def items(self) -> ItemRepository:
        """Items of runs."""
        return ItemRepository(self.session)

    @cached_property
    def outcomes(self) -> OutcomeRepository:
        """How items ended."""
        return OutcomeRepository(self.session)

    @cached_property
    def results(self) -> RunResultRepository:
        """What runs have produced."""
        return RunResultRepository(self.session)

    @cached_property
    def answers(self) -> AnswerRepository:
        """Answers by what was asked."""
        return AnswerRepository(self.session)

    @cached_property
    def usage(self) -> UsageRepository:
        """Sums over attempts."""
        return UsageRepository(self.session)

    @cached_property
    def maintenance(self) -> MaintenanceRepository:
        """What the reconciler does to many jobs at once."""
        return MaintenanceRepository(self.session)

    @cached_property
    def reservations(self) -> ReservationRepository:
        """Contents that jobs are about to pay for."""
        return ReservationRepository(self.session)

    @cached_property
    def workers(self) -> WorkerRepository:
        """Worker processes."""
        return WorkerRepository(self.session)

    def now(self) -> datetime:
        """The database's clock."""
        now: datetime = self.session.execute(select(func.clock_timestamp())).scalar_one()
        return now

    def try_lock(self, name: str) -> bool:
        """Take a lock that one transaction at a time can have; False when another has it."""
        query = text("SELECT pg_try_advisory_xact_lock(hashtext(:name))")
        return bool(self.session.scalar(query, {"name": name}))

    def limit_statements(self, seconds: float, *, idle: float | None = None) -> None:
        """Let no statement of this transaction take longer; one that does is ended.

        With `idle`, the transaction is also ended where it waits so long for its next statement,
        as that of a frozen process does.
        """
        self.session.execute(text(f"SET LOCAL statement_timeout = {int(seconds * 1000)}"))
        if idle is not None:
            self.session.execute(text(f"SET LOCAL {IDLE_LIMIT} = {int(idle * 1000)}"))

    def limit_locks(self, seconds: float) -> None:
        """Let no statement of this transaction wait longer for a lock."""
        self.session.execute(text(f"SET LOCAL lock_timeout = {int(seconds * 1000)}"))

    def after_commit(self, action: Callable[[list[Item]], None], item: Item) -> None:
        """Once the outermost transaction is committed, and never if it isn't, run `action`.

        It runs once, with all the items that were given for it.
        """
        if _AFTER_COMMIT not in self.session.info:
            self.session.info[_AFTER_COMMIT] = _AfterCommit()
            event.listen(self.session, "after_commit", _committed)
            event.listen(self.session, "after_soft_rollback", _rolled_back)
            event.listen(self.session, "after_transaction_end", _ended)
        savepoint = self.session.get_nested_transaction()
        self.session.info[_AFTER_COMMIT].actions.append((savepoint, action, item))


@dataclass
class _AfterCommit:
    """What a session has to do once its transaction is over."""

    actions: list[tuple[SessionTransaction | None, Callable[[list[Any]], None], Any]] = field(
        default_factory=list
    )
    """Each with the savepoint in which it was asked for, and with which it goes, and an item."""
    is_committed: bool = False


@contextmanager
def explained() -> Iterator[None]:
    """Say of the driver's errors what they mean. Raises what `Ledger.transaction` raises."""
    try:
        yield
    except (DBAPIError, psycopg2.Error) as error:
        known = _explain(error)
        if known is None:
            raise
        raise known from error
    except ResourceClosedError as error:
        # How SQLAlchemy tells of a connection that breaks while it asks whom it has connected to.
        raise LedgerUnavailable(
            "The connection to the database broke as it was opened; check that PostgreSQL runs."
        ) from error
    except PoolTimeoutError as error:
        raise LedgerUnavailable(
            "All connections to the database are in use; raise DATABASE_POOL_SIZE."
        ) from error


class Ledger:
    """The database: makes units of work from one pool of connections."""

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 10,
        max_overflow: int = 20,
        silence: int = SILENCE_SECONDS,
    ) -> None:
        """Open nothing yet; `silence` is how long a dead connection may go unnoticed, seconds."""
        self._engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=max_overflow,
            # A connection that a restarted PostgreSQL has closed is replaced unseen.
            pool_pre_ping=True,
            # Errors would else quote a statement's values, which hold prompts.
            hide_parameters=True,
            json_serializer=dump_jsonb,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_SECONDS,
                # Of a network that went silent, nothing but these would ever tell.
                "keepalives_idle": max(1, silence // 3),
                "keepalives_interval": max(1, silence // 3),
                "keepalives_count": 2,
                "tcp_user_timeout": silence * 1_000,
                "application_name": "promptstack",
            },
        )
        event.listen(self._engine, "connect", _limit_idleness)
        event.listen(self._engine, "begin", _limit_idleness_of_one)
        event.listen(self._engine, "begin", _note_answer)
        event.listen(self._engine, "before_cursor_execute", _note_question)
        event.listen(self._engine, "commit", _note_question)
        event.listen(self._engine, "after_cursor_execute", _note_answer)
        event.listen(self._engine, "handle_error", _tell_idleness)
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[UnitOfWork]:
        """Open a transaction; commit at the end, roll back on any error, always close.

        Raises `LedgerUnavailable`, `LedgerSlow`, `LedgerConflict`, and `LedgerOutdated`.
        """
        with explained(), self._sessions.begin() as session:
            yield UnitOfWork(session)

    @staticmethod
    def join(session: Session) -> UnitOfWork:
        """Take part in a caller's own transaction, which the caller commits."""
        return UnitOfWork(session)

    def ping(self) -> str:
        """PostgreSQL's version. Raises `LedgerUnavailable`."""
        with self.transaction() as work:
            return str(work.session.scalar(text("SHOW server_version")))

    @property
    def engine(self) -> Engine:
        """The engine, for migrations and for callers that bring their own session."""
        return self._engine

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def is_pooled(connection: Connection) -> bool:
    """Whether a pooler such as PgBouncer is in between, with which a session is nobody's own.

    Neither a setting nor a lock may be given to it: it would stay with whoever comes next, and the
    next statement may be another session's.
    """
    return bool(connection.info.get(_POOLED))


def _limit_idleness(connection: Any, record: ConnectionPoolEntry) -> None:
    with connection.cursor() as cursor:
        # Whom a pooler has put us through to isn't who answered when we connected.
        cursor.execute(
            f"SELECT set_config('{IDLE_LIMIT}', '{IDLE_SECONDS}s', false) "
            f"WHERE pg_backend_pid() = {connection.info.backend_pid}"
        )
        record.info[_POOLED] = cursor.fetchone() is None
    connection.commit()


def _limit_idleness_of_one(connection: Connection) -> None:
    if is_pooled(connection):
        connection.exec_driver_sql(f"SET LOCAL {IDLE_LIMIT} = '{IDLE_SECONDS}s'")


def _note_question(connection: Connection, *_: object) -> None:
    connection.info[_ASKED] = time.monotonic()


def _note_answer(connection: Connection, *_: object) -> None:
    connection.info[_ANSWERED] = time.monotonic()


def _tell_idleness(context: ExceptionContext) -> None:
    """Tell a connection that broke from one that the database closed, as nothing came for so long.

    PostgreSQL says so when it closes, and nobody reads that any more: the next statement only
    finds the connection gone.
    """
    if not context.is_disconnect or context.connection is None:
        return
    info = context.connection.info
    answered, asked = info.get(_ANSWERED, math.inf), info.get(_ASKED, -math.inf)
    idle = (asked if asked > answered else time.monotonic()) - answered
    if idle >= IDLE_SECONDS:
        raise LedgerSlow(f"{SLOWNESS[TOO_IDLE]} Try again.") from context.original_exception


def _explain(error: DBAPIError | psycopg2.Error) -> PromptStackError | None:
    """Tell an outage and a conflict from what PostgreSQL refuses for good.

    COPY goes past SQLAlchemy, so that its errors come as the driver's own.
    """
    cause = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(cause, "pgcode", None)
    if code in CONFLICTS:
        return LedgerConflict("Two changes of the same rows met in the database; try again.")
    if code in SLOWNESS:
        return LedgerSlow(f"{SLOWNESS[code]} Try again.", detail=str(cause))
    if code in OUTDATED_SCHEMA:
        return LedgerOutdated(
            "The database's schema is missing or older than this version; "
            "run `promptstack migrate`."
        )
    if code in NO_WRITES:
        return LedgerReadOnly(
            "The database takes no writes now: its disk is full, or it is a standby.",
            detail=str(cause),
        )
    if str(code).startswith(OUTAGES) or (code is None and _is_broken(error, cause)):
        return LedgerUnavailable(
            "The database could not be reached or broke the connection; "
            "check DATABASE_URL and that PostgreSQL runs.",
            detail=str(cause),
        )
    return None


def _is_broken(error: Exception, cause: BaseException | None) -> bool:
    """Whether a connection broke; PostgreSQL could not say so itself."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    # The bare DatabaseError is how the driver reports a connection cut within COPY.
    return isinstance(cause, psycopg2.OperationalError | psycopg2.InterfaceError) or (
        type(cause) is psycopg2.DatabaseError
    )


def _committed(session: Session) -> None:
    waiting = session.info[_AFTER_COMMIT]
    released = session.get_nested_transaction()
    if released is None:
        waiting.is_committed = True
        return
    # A savepoint was released: what was asked for within it belongs to what is around it now.
    outer = released.parent if released.parent and released.parent.nested else None
    waiting.actions = [
        (outer if savepoint is released else savepoint, action, item)
        for savepoint, action, item in waiting.actions
    ]


def _rolled_back(session: Session, transaction: SessionTransaction) -> None:
    waiting = session.info[_AFTER_COMMIT]
    if transaction.nested:
        waiting.actions = [
            waits for waits in waiting.actions if not _is_within(waits[0], transaction)
        ]


def _is_within(savepoint: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while savepoint is not None and savepoint is not outer:
        savepoint = savepoint.parent
    return savepoint is outer


def _ended(session: Session, transaction: SessionTransaction) -> None:
    """Act when the session has given its connection back.

    An action that needs a connection would else wait for one that its own thread holds.
    """
    if transaction.parent is not None:
        return
    ended = session.info[_AFTER_COMMIT]
    session.info[_AFTER_COMMIT] = _AfterCommit()
    if ended.is_committed:
        together: dict[Callable[[list[Any]], None], list[Any]] = {}
        for _, action, item in ended.actions:
            together.setdefault(action, []).append(item)
        for action, items in together.items():
            action(items)
