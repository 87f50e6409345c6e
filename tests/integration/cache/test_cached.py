"""`@cached`: for functions and methods, sync and async; one computes where many ask."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from promptstack.services.cache.cache import Cache
from promptstack.services.cache.cached import cached
from promptstack.tasks.connections import open_redis
from promptstack.tasks.worker_services import WorkerServices
from tests.processes import PATIENCE, wait_until

CALLERS, PROCESSES = 200, 4
PROGRAM = """
import json, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from redis import Redis
from promptstack.services.cache.cache import Cache
from promptstack.services.cache.cached import cached

url, callers = sys.argv[1], int(sys.argv[2])
redis = Redis.from_url(url, decode_responses=True)

@cached(60, cache=Cache(redis), key="answer", wait=30)
def answer():
    time.sleep(0.5)
    return redis.incr("computed")

def ask(_):
    while not redis.get("go"):
        time.sleep(0.01)
    return answer()

with ThreadPoolExecutor(callers) as threads:
    asked = threads.map(ask, range(callers))
    redis.incr("ready")
    print(json.dumps(list(asked)))
"""


@pytest.fixture
def cache(stack: WorkerServices) -> Cache:
    return Cache(stack.redis)


class Service:
    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.calls: list[Any] = []

    @cached(60)
    def double(self, number: int, *, note: str = "") -> int | None:
        self.calls.append((number, note))
        return number * 2 or None

    @cached(60, key="later:{number}")
    async def later(self, number: int) -> int:
        self.calls.append(number)
        await asyncio.sleep(0.05)
        return number + 1

    @cached(60)
    def fails(self) -> None:
        self.calls.append("fails")
        raise RuntimeError("never kept")


def test_a_method_is_asked_once(cache: Cache) -> None:
    one, other = Service(cache), Service(cache)
    assert [one.double(2), one.double(number=2), other.double(2, note="")] == [4, 4, 4]
    assert one.double(3) == 6
    assert [one.double(0), one.double(0)] == [None, None]  # a stored None is a hit
    assert (one.calls, other.calls) == ([(2, ""), (3, ""), (0, "")], [])
    assert one.double.key(2).endswith("Service.double(number=2,note='')")


def test_an_answer_is_forgotten_when_asked(cache: Cache) -> None:
    service = Service(cache)
    service.double(2)
    service.double(3)
    assert service.double.invalidate(2)
    assert not service.double.invalidate(2)
    service.double(2)
    service.double(3)
    assert service.calls == [(2, ""), (3, ""), (2, "")]


def test_an_answer_says_its_age(cache: Cache) -> None:
    service = Service(cache)
    assert service.double.aged(2).age == 0
    wait_until(lambda: service.double.aged(2).age >= 0.1, "an older answer")
    assert service.double.aged(2).value == 4
    assert service.double.aged(2).age < 30


def test_an_async_function_is_asked_once_by_many(cache: Cache) -> None:
    service = Service(cache)

    async def ask() -> list[int]:
        return await asyncio.gather(*(service.later(1) for _ in range(50)))

    assert asyncio.run(ask()) == [2] * 50
    assert service.calls == [1]
    assert cache.get("later:1") == 2
    aged = asyncio.run(service.later.aged_later(1))
    assert aged.value == 2
    assert 0 < aged.age < 60


def test_an_error_is_not_kept_and_holds_up_nobody(cache: Cache, stack: WorkerServices) -> None:
    service = Service(cache)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            service.fails()
    assert service.calls == ["fails", "fails"]
    assert not list(stack.redis.scan_iter("promptstack:cache*"))


def test_a_cancelled_async_call_lets_the_next_one_compute(cache: Cache) -> None:
    began = asyncio.Event()

    @cached(60, cache=cache)
    async def answer() -> int:
        if not began.is_set():
            began.set()
            await asyncio.sleep(60)
        return 7

    async def ask() -> int:
        first = asyncio.create_task(answer())
        await asyncio.wait_for(began.wait(), PATIENCE)
        first.cancel()
        return await answer()

    assert asyncio.run(asyncio.wait_for(ask(), 30)) == 7


def test_each_caller_has_a_copy_of_its_own(cache: Cache) -> None:
    @cached(60, cache=cache)
    def rows() -> list[int]:
        return [1]

    rows().append(2)
    rows().append(3)
    assert rows() == [1]


def test_a_stampede_over_processes_computes_once(
    stack: WorkerServices, environment: dict[str, str]
) -> None:
    command = [sys.executable, "-c", PROGRAM, environment["REDIS_URL"], str(CALLERS // PROCESSES)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)
    ]
    wait_until(lambda: stack.redis.get("ready") == str(PROCESSES), "the processes")
    stack.redis.set("go", 1)
    answers = [answer for one in processes for answer in json.loads(one.communicate(timeout=60)[0])]
    assert answers == [1] * CALLERS
    assert stack.redis.get("computed") == "1"


def test_a_stampede_without_redis_computes_once_a_process() -> None:
    calls: list[int] = []
    with open_redis("redis://127.0.0.1:1/0") as away, ThreadPoolExecutor(50) as threads:

        @cached(60, cache=Cache(away))
        def answer() -> int:
            time.sleep(0.5)
            calls.append(1)
            return len(calls)

        asked = [threads.submit(answer) for _ in range(50)]
        answers = [one.result(30) for one in asked]
    # Who was late found no flight any more.
    assert len(calls) < 5
    assert set(answers) <= set(range(1, 5))


def in_another_process(stack: WorkerServices) -> Cache:
    """The cache of another process: what is under way here is not known to it."""
    return Cache(stack.redis)


class Slow:
    """A computation that is held up until it is told to go on."""

    def __init__(self, cache: Cache, **how: Any) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self.value, self.fails = 1, False

        def compute() -> int:
            value = self.value
            self.began.set()
            assert self.go_on.wait(30)
            if self.fails:
                raise RuntimeError("never kept")
            return value

        self.compute: Callable[[], int] = cached(
            how.pop("expire", 60), cache=cache, key="s", **how
        )(compute)


def test_a_value_from_before_an_invalidation_is_not_put_back(
    cache: Cache, stack: WorkerServices
) -> None:
    slow = Slow(cache)
    ways: list[Callable[[], object]] = [
        lambda: cache.delete("s"),
        lambda: in_another_process(stack).delete("s"),
        lambda: in_another_process(stack).invalidate_pattern("*"),
    ]
    for forget in ways:
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(slow.compute)
            assert slow.began.wait(30)
            forget()
            slow.go_on.set()
            assert asked.result(30) == 1
        assert cache.get("s") is None
        slow.began.clear()
        slow.go_on.clear()


def test_a_stale_answer_is_taken_while_one_computes(cache: Cache, stack: WorkerServices) -> None:
    slow = Slow(cache, expire=0.2, stale=60)
    slow.go_on.set()
    assert slow.compute() == 1
    slow.go_on.clear()
    slow.began.clear()
    slow.value = 2
    other = Slow(in_another_process(stack), expire=0.2, stale=60)
    with ThreadPoolExecutor(1) as threads:
        wait_until(lambda: (stack.redis.pttl("promptstack:cache:s") or 0) < 60_000, "a stale one")
        asked = threads.submit(slow.compute)
        assert slow.began.wait(30)
        # Here and in another process: nobody waits, and nobody else computes.
        assert [slow.compute(), other.compute()] == [1, 1]
        assert not other.began.is_set()
        slow.go_on.set()
        assert asked.result(30) == 2
    assert cache.get("s") == 2


def test_who_waits_too_long_computes(cache: Cache, stack: WorkerServices) -> None:
    """The process that computes may have died, or hang."""
    stack.redis.set("promptstack:cache-lock:s", "of a dead process", px=60_000)
    slow = Slow(cache, wait=0.2)
    slow.go_on.set()
    assert slow.compute() == 1
    # It took the lock over: nobody waits again for the dead process.
    assert cache.get("s") == 1
    other = Slow(in_another_process(stack), wait=0.2)
    assert other.compute() == 1
    assert not other.began.is_set()


def test_an_answer_is_kept_that_took_longer_than_others_wait(
    cache: Cache, stack: WorkerServices
) -> None:
    """Though another one has begun to compute by then; what comes first is kept."""
    slow, other = Slow(cache, wait=0.2), Slow(in_another_process(stack), wait=0.2)
    other.value = 2
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(slow.compute)
        assert slow.began.wait(30)
        second = threads.submit(other.compute)
        assert other.began.wait(30)
        slow.go_on.set()
        assert first.result(30) == 1
        assert cache.get("s") == 1
        other.go_on.set()
        assert second.result(30) == 2
    assert cache.get("s") == 1


def test_who_fails_leaves_the_lock_to_who_took_it_over(cache: Cache, stack: WorkerServices) -> None:
    slow, other = Slow(cache, wait=0.2), Slow(in_another_process(stack), wait=0.2)
    slow.fails = True
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(slow.compute)
        assert slow.began.wait(30)
        second = threads.submit(other.compute)
        assert other.began.wait(30)
        slow.go_on.set()
        with pytest.raises(RuntimeError):
            first.result(30)
        other.go_on.set()
        assert second.result(30) == 1
    assert cache.get("s") == 1


def test_an_async_caller_shares_the_answer_of_a_sync_function(cache: Cache) -> None:
    service = Service(cache)

    async def ask() -> Any:
        return await asyncio.gather(*(service.double.aged_later(4) for _ in range(50)))

    assert [one.value for one in asyncio.run(ask())] == [8] * 50
    assert service.calls == [(4, "")]


@pytest.mark.parametrize(
    "how", [{"expire": 0}, {"expire": 80_000, "stale": 80_000}, {"expire": 1, "wait": 61}]
)
def test_bounds_of_time_hold_when_a_function_is_decorated(how: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="s"):
        cached(**how)(lambda: None)


def test_a_method_of_an_object_without_a_cache_is_a_mistake() -> None:
    class Bare:
        @cached(1)
        def answer(self) -> int:
            return 1

    with pytest.raises(TypeError, match="has no cache"):
        Bare().answer()
