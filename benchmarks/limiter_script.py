"""What one question to the limiter costs Redis while 1,000 calls wait, and when waiters ask.

Run `python -m benchmarks.limiter_script`.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis

from promptstack.config.models_file import ModelLimits
from promptstack.embedded.servers import EmbeddedServers, remove
from promptstack.services.limiter.divided import DividedBuckets
from promptstack.services.limiter.limiter import RateLimiter
from promptstack.services.limiter.shared import SharedBuckets
from promptstack.services.limiter.terms import Bucket, Need, Settlement, Verdict
from promptstack.services.llm.answers import Outcome

WAITERS = 1_000
RPM = 6_000
SECONDS = 5.0
BIN_SECONDS = 0.01
BUCKET = Bucket("openai", "key", "model")


class Watched(SharedBuckets):
    """Notes when it is asked."""

    def __init__(self, redis: Any) -> None:
        super().__init__(redis)
        self.asked: list[float] = []

    async def ask(self, *arguments: Any, **named: Any) -> Verdict:
        """Ask, and note it."""
        self.asked.append(time.monotonic())
        return await super().ask(*arguments, **named)


async def measure(url: str) -> None:
    """Keep 1,000 calls waiting for some seconds and print what was seen."""
    redis: Any = Redis.from_url(url, decode_responses=True, socket_timeout=60.0)
    pool = BlockingConnectionPool.from_url(
        url, decode_responses=True, max_connections=50, timeout=30
    )
    shared = Watched(Redis.from_pool(pool))
    limits = ModelLimits(provider="openai", requests_per_minute=RPM, tokens_per_minute=10_000_000)
    limiter = RateLimiter(
        shared, DividedBuckets(lambda: 1), [limits], patience_seconds=600.0, lease_seconds=60.0
    )
    calls = 0

    async def work(number: int) -> None:
        nonlocal calls
        while True:
            permit = await limiter.acquire(BUCKET, Need(100, 100, is_bulk=number % 2 == 0))
            calls += 1
            settlement = Settlement(Outcome.ANSWERED, 0.1, input_tokens=100, output_tokens=100)
            await limiter.settle(permit, settlement)

    tasks = [asyncio.create_task(work(number)) for number in range(WAITERS)]
    await asyncio.sleep(2.0)
    await redis.config_set("slowlog-max-len", 50_000)
    await redis.config_set("slowlog-log-slower-than", 0)
    shared.asked.clear()
    calls, began = 0, time.monotonic()
    await asyncio.sleep(SECONDS)
    seen, passed = calls, time.monotonic() - began
    asked = list(shared.asked)
    await redis.config_set("slowlog-log-slower-than", -1)
    entries = await redis.slowlog_get(50_000)
    left: set[asyncio.Task[None]] = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=1.0)
    await redis.aclose()
    await limiter.aclose()
    _show(
        [entry for entry in entries if "EVALSHA" in str(entry["command"])[:10]], asked, seen, passed
    )


def _show(entries: list[dict[str, Any]], asked: list[float], calls: int, passed: float) -> None:
    took = sorted(int(entry["duration"]) for entry in entries)
    bins = Counter(int(at / BIN_SECONDS) for at in asked)
    every = [bins.get(bin_, 0) for bin_ in range(min(bins), max(bins) + 1)]
    each = len(asked) / calls
    sys.stdout.write(
        f"{WAITERS} waiters, {calls / passed:.0f} calls a second let through "
        f"(limit {RPM / 60:.0f})\n"
        f"script: {len(took)} calls, {statistics.median(took):.0f} us of Redis time at the median, "
        f"{took[int(len(took) * 0.99)]} us at the 99th percentile\n"
        f"questions: {each:.1f} a call; in {BIN_SECONDS * 1e3:.0f} ms "
        f"{statistics.mean(every):.1f} on average, {max(every)} at most\n"
    )


def main() -> None:
    """Measure on a server of our own."""
    folder = Path(tempfile.mkdtemp(prefix="promptstack-benchmark-"))
    try:
        with EmbeddedServers(folder, durable=False) as urls:
            asyncio.run(measure(urls.redis_url))
    finally:
        remove(folder)


if __name__ == "__main__":
    main()
