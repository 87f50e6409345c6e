"""The connections of a process: how those to Redis behave, and checks of all at its start.

A server that is away is no fault of the settings: it is waited for. One that refuses us, or whose
certificate is not to be trusted, would be asked for ever.
"""

import ssl
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from amqp.exceptions import AccessRefused, AMQPError, NotAllowed
from redis import Redis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, MovedError, NoPermissionError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from promptstack.config.errors import ConfigurationError

if TYPE_CHECKING:
    from celery import Celery

REDIS_TIMEOUT_SECONDS = 2.0
LIMITER_CONNECTIONS = 50
OLDEST_REDIS = (6, 2)
"""The first to know XADD's NOMKSTREAM and MINID, by which texts are shown. Valkey says 7.2."""
REFUSALS = (AuthenticationError, NoPermissionError, AccessRefused, NotAllowed)
PROBES = [f"promptstack:probe:{number}" for number in range(3)]
"""Keys that nobody sets. Of a Redis Cluster with several nodes, none has the slots of all."""
AWAY = (RedisError, AMQPError, OSError)
"""What is raised for a server that can't be reached, and for much else."""


def open_redis(url: str) -> Redis:
    """Make the client of progress, results and the broker's epoch."""
    return Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
        # Once, for a connection that a restarted Redis has closed; by default it would be three
        # times, after waits.
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    )


def open_async_redis(url: str, connections: int = LIMITER_CONNECTIONS) -> AsyncRedis:
    """Make a client for one event loop, such as the rate limiter's."""
    return AsyncRedis.from_pool(
        BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=REDIS_TIMEOUT_SECONDS,
            decode_responses=True,
            socket_timeout=REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
            # None: a call that a worker never heard the answer of may have been granted.
            retry=AsyncRetry(NoBackoff(), 0),
        )
    )


def open_events_redis(url: str) -> AsyncRedis:
    """Make the client that hears of changes: it may wait for long, but not to be let in."""
    return AsyncRedis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
        # None: after a lost connection, what was said meanwhile must be looked for.
        retry=AsyncRetry(NoBackoff(), 0),
    )


def check_redis(redis: Redis) -> None:
    """Raise `ConfigurationError` where REDIS_URL can't work as it is."""

    def look() -> None:
        redis.ping()
        for name in PROBES:
            redis.exists(name)
        _check_version(redis)

    _explained("REDIS_URL", look)


def _check_version(redis: Redis) -> None:
    try:
        told = str(redis.info("server").get("redis_version", ""))
    except NoPermissionError:
        return  # nothing else needs this right
    parts = tuple(int(part) for part in told.split(".")[:2] if part.isdigit())
    if parts and parts < OLDEST_REDIS:
        oldest = ".".join(map(str, OLDEST_REDIS))
        raise ConfigurationError(
            f"REDIS_URL: the server is Redis {told}; use {oldest} or newer, or Valkey."
        )


def check_broker(app: "Celery", variable: str) -> None:
    """Raise `ConfigurationError` where the broker's URL, of this variable, can't work as it is."""
    try:
        broker = app.connection_for_write()
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{variable} can't be read: {error}.") from error
    with broker:
        _explained(variable, broker.connect)


def _explained(variable: str, connect: Callable[[], object]) -> None:
    try:
        connect()
    except AWAY as error:
        reason = next((found for found in map(_reason, _causes(error)) if found), None)
        if reason is not None:
            raise ConfigurationError(f"{variable}: {reason}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the server's certificate is not trusted ({error.verify_message.rstrip('.')}). "
            "Nothing was sent to it. Set TLS_CA_FILE to the certificates of who signed it, and "
            "name the server as its certificate does."
        )
    if isinstance(error, ssl.SSLError):
        return f"the server does not speak TLS as we do ({error.reason}); check scheme and port."
    if isinstance(error, MovedError):
        return (
            "this server is one node of a Redis Cluster, and the broker and progress need all "
            "keys on one server. Name a Redis or Valkey server that is no part of a cluster."
        )
    if isinstance(error, REFUSALS):
        return "the server refuses this user or password, or what the user may do is too little."
    return None
