"""A sweep for secrets finds one in each place and spelling: else it would prove nothing."""

import html
import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from redis import Redis
from sqlalchemy import text

from promptstack.tasks.worker_services import WorkerServices
from tests.sweep import Finding, Sweep, in_ledger, in_redis, redis_traffic

SPELLINGS: dict[str, Callable[[str], str]] = {
    "itself": str,
    "in a URL": lambda secret: quote(secret, safe=""),
    "in a path": quote,
    "in a form": quote_plus,
    "Python": repr,
    "JSON": json.dumps,
    "JSON in JSON": lambda secret: json.dumps(json.dumps({"password": secret})),
    "HTML": html.escape,
    "hexadecimal": lambda secret: secret.encode().hex(),
    "base64": lambda secret: b64encode(secret.encode()).decode(),
    "base64, after one": lambda secret: b64encode(b"u" + secret.encode() + b"x").decode(),
    "base64, after two": lambda secret: b64encode(b"u:" + secret.encode() + b"xy").decode(),
    "base64 of JSON": lambda secret: b64encode(json.dumps([secret]).encode()).decode(),
    "base64 for URLs": lambda secret: urlsafe_b64encode(b"??>" + secret.encode()).decode(),
}

PLANT: dict[str, Callable[[Redis, str], object]] = {
    "key": lambda redis, secret: redis.set(secret, 1),
    "string": lambda redis, secret: redis.set("x", secret),
    "long string": lambda redis, secret: redis.set("x", "y" * 10_000 + secret),
    "field": lambda redis, secret: redis.hset("x", secret, "y"),
    "value of a field": lambda redis, secret: redis.hset("x", "y", secret),
    "list": lambda redis, secret: redis.rpush("x", "y", secret),
    "set": lambda redis, secret: redis.sadd("x", secret),
    "sorted set": lambda redis, secret: redis.zadd("x", {secret: 1}),
    "stream": lambda redis, secret: redis.xadd("x", {"y": secret}),
}
"""Ways to put a secret into Redis."""


@pytest.fixture
def sweep() -> Sweep:
    return Sweep()


@pytest.fixture
def redis(stack: WorkerServices) -> Redis:
    return Redis.from_url(stack.redis_url)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_spelling_is_found(sweep: Sweep, spelling: str) -> None:
    secret = sweep.make("password", 'it\'s "{}" \\ %41/~ü?>')
    other = sweep.make("key")
    sweep.look("log", f"INFO somebody said {SPELLINGS[spelling](secret)} here")
    assert sweep.findings == [Finding("log", "password")]
    sweep.look("page", f"and {SPELLINGS[spelling](other)}.")
    assert sweep.findings[1:] == [Finding("page", "key")]


def test_what_is_cut_is_found(sweep: Sweep) -> None:
    password = sweep.make("password", "before {} after")
    token = sweep.know("token", "eyJhbGciOiJIUzI1NiJ9." + "x" * 60 + "0123456789" * 3)
    sweep.look("log", password[:-3] + "...")
    sweep.look("log", token[-25:])
    assert [each.secret for each in sweep.findings] == ["password", "token"]


def test_what_belongs_to_a_place_is_no_finding(sweep: Sweep) -> None:
    token, password = sweep.make("token"), sweep.make("password")
    sweep.look("the answer to a sign-in", token, but=["token"])
    sweep.look("the log", "nothing of it")
    assert sweep.findings == []
    sweep.look("the answer to a sign-in", password, but=["token"])
    assert sweep.findings == [Finding("the answer to a sign-in", "password")]
    assert sweep.looked_at == {"the answer to a sign-in": 40, "the log": 13}


@pytest.mark.parametrize("kind", PLANT)
def test_each_kind_of_value_in_redis_is_looked_through(
    sweep: Sweep, redis: Redis, kind: str
) -> None:
    PLANT[kind](redis, sweep.make("password"))
    for place, content in in_redis(redis):
        sweep.look(place, content)
    assert [each.secret for each in sweep.findings] == ["password"]


def test_what_only_passes_through_redis_is_seen(sweep: Sweep, redis: Redis) -> None:
    secret = sweep.make("password", '"{}"\n')
    with redis_traffic(redis) as traffic:
        redis.publish("events", secret)
        redis.eval("return redis.call('SET', 'x', ARGV[1])", 0, "y")
        redis.delete("x")
    assert len(traffic) >= 4
    sweep.look("traffic", "\n".join(traffic))
    assert sweep.findings == [Finding("traffic", "password")]


def test_each_table_and_kind_of_column_is_looked_through(
    sweep: Sweep, stack: WorkerServices
) -> None:
    secrets = [sweep.make(f"{number}") for number in range(5)]
    user = stack.users.create("ada@example.org", name=secrets[0])
    stack.keys.create("ada@example.org", "Test", models=[secrets[1]])
    with stack.ledger.engine.begin() as connection:
        connection.execute(text("CREATE TABLE planted (a jsonb, b bytea, c text[])"))
        connection.execute(
            text("INSERT INTO planted VALUES (jsonb_build_object('x', :a), :b, ARRAY[:c])"),
            {"a": secrets[2], "b": secrets[3].encode(), "c": secrets[4]},
        )
        found = dict(in_ledger(connection))
    assert str(user.id) in found["users"]
    assert {"users", "api_keys", "sessions", "refresh_tokens", "audit_log", "jobs"} <= found.keys()
    for table, rows in found.items():
        sweep.look(table, rows)
    assert sorted((each.place, each.secret) for each in sweep.findings) == [
        ("api_keys", "1"),
        ("audit_log", "1"),
        ("planted", "2"),
        ("planted", "3"),
        ("planted", "4"),
        ("users", "0"),
    ]
