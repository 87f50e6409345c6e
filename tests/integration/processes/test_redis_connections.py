"""How Redis is reached: over TLS and Unix sockets, with passwords, by all that speak to it."""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest
from celery.result import AsyncResult
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError

from promptstack.config.errors import ConfigurationError
from promptstack.config.names import Queue
from promptstack.config.settings import get_settings, load_settings
from promptstack.embedded.servers import ServerUrls
from promptstack.repositories.models import JobState
from promptstack.services.limiter.terms import Bucket
from promptstack.tasks.composition import PromptStack
from tests.processes import Process, run
from tests.tls import Authority, TlsServer, tls_before

PASSWORD = "p@ss/w%23 rd:?"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def guarded(servers: ServerUrls) -> Iterator[ServerUrls]:
    """The servers, of which Valkey asks for a password."""
    with Redis.from_url(servers.redis_url) as redis:
        redis.acl_setuser(
            "guest",
            enabled=True,
            passwords=[f"+{PASSWORD}"],
            keys="*",
            channels="*",
            categories=["+@all"],
        )
        yield servers
        redis.acl_deluser("guest")


@pytest.fixture
def tls(servers: ServerUrls, authority: Authority) -> Iterator[TlsServer]:
    """The test's Valkey behind a certificate for `localhost`."""
    with tls_before(
        unquote(urlsplit(servers.redis_url).path), authority.certificate("localhost")
    ) as server:
        yield server


def with_database(url: str, environment: dict[str, str]) -> str:
    """The URL, of the test's own database in Redis."""
    return url + urlsplit(environment["REDIS_URL"]).query.removeprefix("db=")


def open_with(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], **changes: str
) -> PromptStack:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
        environment[name] = value
    get_settings.cache_clear()
    return PromptStack.open(load_settings(_env_file=None))


def use_all(stack: PromptStack) -> None:
    """Speak to Redis as progress, limiter, broker and results do."""
    job = stack.jobs.enqueue_generation("Say hello.")
    stack.progress.rebuild([job.id])
    assert stack.redis.exists(f"promptstack:progress:{job.id}")
    stack.loop.run(stack.limiter._shared.told(Bucket("demo", "none", "demo")))
    assert stack.publisher.waiting(Queue.GENERATION) == 1
    assert AsyncResult(str(job.id), app=stack.celery).state == "PENDING"


def test_all_speak_tls_to_a_server_whose_certificate_they_check(
    stack: PromptStack,
    environment: dict[str, str],
    tls: TlsServer,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    start_worker: Callable[..., Process],
) -> None:
    url = with_database(f"rediss://localhost:{tls.port}/", environment)
    with open_with(
        monkeypatch, environment, REDIS_URL=url, TLS_CA_FILE=str(authority.file)
    ) as secured:
        use_all(secured)
        start_worker()
        job = secured.jobs.enqueue_generation("Say hello.")
        (ended,) = secured.jobs.wait([job.id], timeout=60)
        assert ended.state == JobState.SUCCEEDED
        result: Any = AsyncResult(str(job.id), app=secured.celery)
        assert result.get(timeout=20)
    assert tls.connections >= 4
    assert b"BRPOP" in tls.heard


@pytest.mark.parametrize("fault", ["unknown authority", "another host"])
@pytest.mark.parametrize(
    ("variable", "scheme"),
    [("REDIS_URL", "rediss"), ("CELERY_BROKER_URL", "rediss"), ("CELERY_BROKER_URL", "amqps")],
)
def test_a_server_that_is_not_who_it_should_be_hears_no_password(
    fault: str,
    variable: str,
    scheme: str,
    environment: dict[str, str],
    servers: ServerUrls,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = "localhost" if fault == "unknown authority" else "elsewhere.example"
    trusted = Authority(authority.file.parent, "another") if host == "localhost" else authority
    certificate = authority.certificate(host)
    with tls_before(unquote(urlsplit(servers.redis_url).path), certificate) as server:
        url = f"{scheme}://user:secret@localhost:{server.port}/0"
        changes = {variable: url, "TLS_CA_FILE": str(trusted.file)}
        with open_with(monkeypatch, environment, **changes) as stack:
            backend: Any = stack.celery.backend
            if variable == "REDIS_URL":
                with pytest.raises(RedisConnectionError):
                    stack.redis.ping()
                with pytest.raises(RedisConnectionError):
                    stack.loop.run(stack.limiter._shared.told(Bucket("a", "b", "c")))
                with pytest.raises(RedisConnectionError):
                    backend.client.ping()
            refusal = RedisConnectionError if scheme == "rediss" else ssl.SSLCertVerificationError
            with pytest.raises(refusal), stack.celery.connection_for_write() as broker:
                broker.connect()
        # The other commands say the same; to start one takes seconds.
        commands = (
            ("promptstack.worker", "promptstack.api.http", "promptstack.api.flower")
            if fault == "another host"
            else ("promptstack.worker",)
        )
        for command in commands:
            done = run(["-m", command], {**environment, "API_PORT": "0", "FLOWER_PORT": "0"})
            assert done.returncode == 2
            said = done.stderr.strip()
            assert "\n" not in said
            assert f"{variable}: " in said
            assert "TLS_CA_FILE" in said
        assert server.connections >= 2
        assert not server.heard


def test_a_unix_socket_keeps_its_password_for_all(
    guarded: ServerUrls, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = urlsplit(environment["REDIS_URL"])
    url = f"unix://guest@{parts.path}?{parts.query}"
    with open_with(monkeypatch, environment, REDIS_URL=url, REDIS_PASSWORD=PASSWORD) as stack:
        use_all(stack)
        with stack.celery.connection_for_write() as broker:
            assert PASSWORD not in broker.as_uri()
            assert quote(PASSWORD, safe="") not in broker.as_uri()


@pytest.mark.parametrize("version", ["5.0.14", "6.0.16"])
def test_a_redis_that_is_too_old_is_named(stack: PromptStack, version: str) -> None:
    stack.redis.set_response_callback("INFO", lambda *_, **__: {"redis_version": version})
    with pytest.raises(ConfigurationError, match=f"REDIS_URL: .* Redis {version}; use 6.2"):
        stack.check_connections()


@pytest.mark.parametrize("version", ["6.2.0", "7.2.4", "10.0", "unknown"])
def test_a_redis_that_is_new_enough_is_taken(stack: PromptStack, version: str) -> None:
    stack.redis.set_response_callback("INFO", lambda *_, **__: {"redis_version": version})
    stack.check_connections()


def test_a_user_that_may_not_ask_for_the_version_is_taken(
    guarded: ServerUrls, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Redis.from_url(guarded.redis_url) as redis:
        redis.acl_setuser("guest", enabled=True, commands=["-info"])
    parts = urlsplit(environment["REDIS_URL"])
    url = f"unix://guest@{parts.path}?{parts.query}"
    with open_with(monkeypatch, environment, REDIS_URL=url, REDIS_PASSWORD=PASSWORD) as stack:
        with pytest.raises(NoPermissionError):
            stack.redis.info()
        stack.check_connections()


def test_an_option_that_no_broker_can_read_is_named(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "amqp://user:hunter2@127.0.0.1:1//?heartbeat=soon"
    with (
        open_with(monkeypatch, environment, CELERY_BROKER_URL=url) as stack,
        pytest.raises(ConfigurationError) as caught,
    ):
        stack.check_connections()
    assert str(caught.value).startswith("CELERY_BROKER_URL can't be read: ")
    assert "hunter2" not in str(caught.value)


def test_a_broker_that_is_away_is_waited_for(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in ("amqp://127.0.0.1:1//", "amqps://127.0.0.1:1//", "redis://127.0.0.1:1/0"):
        with open_with(monkeypatch, environment, CELERY_BROKER_URL=url) as stack:
            stack.check_connections()


@pytest.mark.parametrize(
    "variable", ["CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"]
)
def test_what_other_apps_set_for_celery_is_not_ours(
    variable: str, stack: PromptStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "redis://127.0.0.1:1/0")
    use_all(stack)
    with stack.celery.connection_for_read() as broker:
        broker.connect()
