"""The cache on a real server: what it keeps, forgets and refuses, and what an outage costs."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from redis import Redis

from promptstack.services.cache.cache import MAX_EXPIRE_SECONDS, MISSING, Cache
from promptstack.services.cache.codec import NotCacheable
from promptstack.services.circuit_breaker import CircuitBreaker
from promptstack.tasks.connections import open_redis
from promptstack.tasks.worker_services import WorkerServices
from tests.processes import wait_until


@pytest.fixture
def cache(stack: WorkerServices) -> Cache:
    return Cache(stack.redis)


@pytest.fixture
def away() -> Iterator[Redis]:
    """A client of a server that is away."""
    with open_redis("redis://127.0.0.1:1/0") as client:
        yield client


def keys(stack: WorkerServices) -> set[str]:
    return set(stack.redis.scan_iter())


def test_a_value_is_kept_for_its_time(cache: Cache, stack: WorkerServices) -> None:
    value = {"cost": Decimal("1.10"), "at": datetime(2026, 1, 1, tzinfo=UTC)}
    assert cache.get("sums") is None
    assert cache.set("sums", value, expire=60)
    assert cache.get("sums") == value
    assert keys(stack) == {"promptstack:cache:sums"}
    assert 59_000 < stack.redis.pttl("promptstack:cache:sums") <= 60_000
    cache.set("sums", 1, expire=0.05)
    wait_until(lambda: cache.get("sums") is None, "the end of its time")


def test_a_stored_none_is_a_hit(cache: Cache) -> None:
    assert cache.get("nothing", MISSING) is MISSING
    cache.set("nothing", None, expire=60)
    assert cache.get("nothing", MISSING) is None


def test_a_deleted_value_is_gone(cache: Cache) -> None:
    cache.set("one", 1, expire=60)
    assert cache.delete("one")
    assert not cache.delete("one")
    assert cache.get("one", MISSING) is MISSING


def test_a_pattern_forgets_what_matches_and_nothing_else(
    cache: Cache, stack: WorkerServices
) -> None:
    for number in range(1_200):
        cache.set(f"usage:{number}", number, expire=60)
    cache.set("used", 1, expire=60)
    stack.redis.set("usage:of somebody else", "stays")
    stack.redis.set("promptstack:progress:1", "stays")
    assert cache.invalidate_pattern("usage:*") == 1_200
    assert keys(stack) == {
        "promptstack:cache:used",
        "usage:of somebody else",
        "promptstack:progress:1",
    }
    assert cache.invalidate_pattern("*") == 1


def test_keys_are_never_listed_or_deleted_at_once(
    cache: Cache, stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KEYS and DEL would hold up everybody for as long as they take."""
    asked: list[str] = []
    execute: Any = stack.redis.execute_command

    def record(name: str, *arguments: Any, **named: Any) -> Any:
        asked.append(name)
        return execute(name, *arguments, **named)

    cache.set("a", 1, expire=60)
    monkeypatch.setattr(stack.redis, "execute_command", record)
    assert cache.invalidate_pattern("*") == 1
    assert set(asked) == {"SCAN", "UNLINK"}


def test_what_is_too_large_is_not_kept(cache: Cache) -> None:
    assert cache.set("large", "x" * 900_000, expire=60)
    assert not cache.set("larger", "x" * 1_000_001, expire=60)
    assert cache.get("larger", MISSING) is MISSING


@pytest.mark.parametrize("expire", [0, -1, float("nan"), float("inf"), MAX_EXPIRE_SECONDS + 1])
def test_a_time_out_of_bounds_is_refused(cache: Cache, expire: float) -> None:
    with pytest.raises(ValueError, match="86400"):
        cache.set("one", 1, expire=expire)


def test_a_type_that_would_not_come_back_is_refused(cache: Cache) -> None:
    with pytest.raises(NotCacheable, match="name the class"):
        cache.set("one", object(), expire=60)


def test_a_long_or_odd_key_is_kept_apart(cache: Cache, stack: WorkerServices) -> None:
    for key in ("x" * 10_000, "x" * 10_001, "a\nb", "a b", "\ud800", "ä*[?]"):
        assert cache.set(key, key[-3:] if key != "\ud800" else "half", expire=60)
    assert cache.get("x" * 10_000) == "xxx"
    assert len(keys(stack)) == 6
    assert max(map(len, keys(stack))) < 300


def test_what_another_version_wrote_is_a_miss(cache: Cache, stack: WorkerServices) -> None:
    stack.redis.set("promptstack:cache:one", '{"$": "class Gone", "v": {}}')
    assert cache.get("one", MISSING) is MISSING


def test_an_outage_is_a_miss_and_one_line(away: Redis, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    cache = Cache(away, breaker=CircuitBreaker(clock=lambda: now[0]))
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            assert cache.get("one", MISSING) is MISSING
            assert not cache.set("one", 1, expire=60)
            assert not cache.delete("one")
            assert cache.invalidate_pattern("*") == 0
            now[0] += 1.0
    assert [record.getMessage() for record in caplog.records] == [
        "nothing is cached: Redis is away (ConnectionError)"
    ]
