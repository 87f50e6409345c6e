"""Real servers for every test: one PostgreSQL and one Valkey a session, a database each a test."""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from redis import Redis
from sqlalchemy import create_engine, make_url, text

from promptstack.config.settings import Settings, get_settings, load_settings
from promptstack.embedded.servers import EmbeddedServers, ServerUrls, remove
from promptstack.repositories.migrations import upgrade
from promptstack.services.access.passwords import Passwords
from promptstack.services.access.users import UserView
from promptstack.simulator.process import MODELS
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, employ
from tests.processes import Process, started_fork_server, stop_ignoring_signals, wait_until

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

TEMPLATE = "migrated"
STATEMENT_SECONDS = 300
"""How long one statement may take: a test that waits for a lock for ever fails, and says where."""
REDIS_DATABASES = 16
_numbers = itertools.count()

# A busy machine may stop for longer than any deadline of one example.
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")


def pytest_configure() -> None:
    """Start with signals that children can rely on, however the tests were started."""
    stop_ignoring_signals()


def pytest_unconfigure() -> None:
    """End what the tests of this process shared."""
    if started_fork_server.cache_info().currsize:
        started_fork_server().close()


@pytest.fixture(scope="session")
def servers() -> Iterator[ServerUrls]:
    """The servers of this test session."""
    folder = Path(tempfile.mkdtemp(prefix="promptstack-tests-"))
    with EmbeddedServers(folder, durable=False) as urls:
        yield urls
    remove(folder)


@pytest.fixture(scope="session")
def run_sql(servers: ServerUrls) -> Iterator[Callable[[str], None]]:
    """Runs statements that concern the whole server, on one connection of this session."""
    engine = create_engine(servers.database_url, isolation_level="AUTOCOMMIT")

    def run(statement: str) -> None:
        with engine.connect() as connection:
            connection.execute(text(statement))

    run(f"ALTER SYSTEM SET statement_timeout = '{STATEMENT_SECONDS}s'")
    run("SELECT pg_reload_conf()")
    yield run
    engine.dispose()


@pytest.fixture(scope="session")
def template_database(servers: ServerUrls, run_sql: Callable[[str], None]) -> str:
    """A migrated database that each test's own is copied from."""
    run_sql(f"CREATE DATABASE {TEMPLATE}")
    engine = create_engine(_database(servers.database_url, TEMPLATE))
    upgrade(engine)
    engine.dispose()
    return TEMPLATE


@pytest.fixture
def environment(
    servers: ServerUrls,
    template_database: str,
    run_sql: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[dict[str, str]]:
    """The settings of a test as environment variables, with an empty ledger and an empty Redis."""
    number = next(_numbers)
    name = f"test_{number}"
    run_sql(f"CREATE DATABASE {name} TEMPLATE {template_database}")
    redis_url = servers.redis_url.replace("db=0", f"db={number % REDIS_DATABASES}")
    with Redis.from_url(redis_url) as redis:
        redis.flushdb()
    variables = {
        "DATABASE_URL": _database(servers.database_url, name),
        "REDIS_URL": redis_url,
        "ENVIRONMENT": "test",
        "MODELS_FILE": str(MODELS),
        "PROMPTSTACK_STATE_DIR": str(tmp_path / "state"),
        "RETRY_BACKOFF_SECONDS": "0.1",
        "HEARTBEAT_SECONDS": "0.5",
        "WORKER_LOST_SECONDS": "2",
        # Often enough to wait for; a round of each of a test's workers takes 0.03 s of processor.
        "RECONCILE_SECONDS": "0.5",
    }
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    get_settings.cache_clear()
    yield variables
    # Thousands of them would fill the disk. What a test left running loses its connections.
    run_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def settings(environment: dict[str, str]) -> Settings:
    """The settings of a test."""
    return load_settings(_env_file=None)


@pytest.fixture
def stack(settings: Settings) -> Iterator[WorkerServices]:
    """Everything wired to the test's own servers."""
    with WorkerServices.open(settings) as opened:
        yield opened


@pytest.fixture
def start_worker(
    environment: dict[str, str], stack: WorkerServices, tmp_path: Path
) -> Iterator[Callable[..., Process]]:
    """Starts real worker processes, and ends them with the test: at once, nobody looks any more."""
    with ExitStack() as processes:

        def start(**variables: str) -> Process:
            log = tmp_path / f"worker-{next(_numbers)}.log"
            before = _alive(stack)
            worker = Process(["-m", "promptstack.worker"], {**environment, **variables}, log)
            processes.callback(worker.kill)
            wait_until(lambda: _alive(stack) - before, f"a worker's heartbeat; see {log}")
            return worker

        yield start


PASSWORD = "three green boats sail slowly"


@pytest.fixture
def quick_hashes(stack: WorkerServices) -> Passwords:
    """Passwords that are hashed in no time: most tests need the real cost as little as its wait."""
    from pwdlib import PasswordHash  # noqa: PLC0415 - most tests never sign in
    from pwdlib.hashers.argon2 import Argon2Hasher  # noqa: PLC0415

    hasher = Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1)
    stack.passwords = Passwords(PasswordHash((hasher,)))
    return stack.passwords


@pytest.fixture
def test_user(stack: WorkerServices, quick_hashes: Passwords) -> UserView:
    """A user who can sign in by `PASSWORD`."""
    return stack.users.create("ada@example.org", name="Ada Lovelace", password=PASSWORD)


@pytest.fixture
def client(stack: WorkerServices, quick_hashes: Passwords) -> Iterator["TestClient"]:
    """A client of the HTTP API that says nothing of who it is."""
    from fastapi.testclient import TestClient  # noqa: PLC0415 - many tests need no HTTP

    from promptstack.api.http.app import create_app  # noqa: PLC0415

    with TestClient(create_app(stack)) as opened:
        yield opened


@pytest.fixture
def auth_client(client: "TestClient", test_user: UserView) -> "TestClient":
    """A client that `test_user` has signed in with."""
    body = {"email": test_user.email, "password": PASSWORD}
    tokens = client.post("/api/v1/auth/login", json=body).json()
    client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
    return client


@pytest.fixture
def fake_llm(stack: WorkerServices) -> FakeProvider:
    """A provider `fake` that a worker of this stack asks: it says what it was asked."""
    provider = FakeProvider()
    employ(stack, provider)
    return provider


def _alive(stack: WorkerServices) -> set[object]:
    with stack.ledger.transaction() as unit:
        return {worker.id for worker in unit.workers.get_many()}


def _database(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)
