"""Calls of several threads at once are made together, and none of them waits for ever."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from promptstack.services.jobs import combined
from promptstack.services.jobs.combined import Combined
from tests.processes import wait_until

THREADS = 8


class Work:
    """Doubles numbers, once it may."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.is_open = threading.Event()
        self.refused: set[int] = set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        assert self.is_open.wait(60)
        if self.refused.intersection(items):
            raise ValueError(f"{items} has a bad one")
        return [2 * item for item in items]


def waiting(calls: Combined[int, int]) -> int:
    return len(calls._waiting)


def call_all(calls: Combined[int, int], pool: ThreadPoolExecutor, work: Work) -> list[Future[int]]:
    """Let one call work and all others wait for it."""
    first = pool.submit(calls, 0)
    wait_until(lambda: work.batches, "the first call")
    others = []
    for number in range(1, THREADS):
        others.append(pool.submit(calls, number))
        wait_until(lambda number=number: waiting(calls) == number, "the next call")  # type: ignore[misc]
    return [first, *others]


def test_who_comes_while_another_works_is_worked_on_together() -> None:
    work = Work()
    calls = Combined(work, most=5)
    with ThreadPoolExecutor(THREADS) as pool:
        results = call_all(calls, pool, work)
        work.is_open.set()
        assert [result.result(60) for result in results] == [2 * n for n in range(THREADS)]
    assert work.batches == [[0], [1, 2, 3, 4, 5], [6, 7]]
    # Nobody leads any more: the next one does not wait.
    assert calls(9) == 18


def test_as_many_as_the_last_time_get_a_moment_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(combined, "GATHER_SECONDS", 60.0)
    work = Work()
    calls = Combined(work, most=100)
    with ThreadPoolExecutor(THREADS) as pool:
        results = call_all(calls, pool, work)
        work.is_open.set()
        assert [result.result(60) for result in results] == [2 * n for n in range(THREADS)]
        # Seven came the last time: the first of them waits for the others.
        again = [pool.submit(calls, 10)]
        wait_until(lambda: waiting(calls) == 1, "the first one")
        again += [pool.submit(calls, number) for number in range(11, 17)]
        assert [result.result(60) for result in again] == [2 * n for n in range(10, 17)]
    assert [len(batch) for batch in work.batches] == [1, 7, 7]
    monkeypatch.setattr(combined, "GATHER_SECONDS", 0.001)
    assert (calls(1), calls(2)) == (2, 4)


def test_a_failure_meets_only_whom_it_concerns() -> None:
    work = Work()
    calls = Combined(work, most=100)
    work.refused = {3}
    with ThreadPoolExecutor(THREADS) as pool:
        results = call_all(calls, pool, work)
        work.is_open.set()
        for number, result in enumerate(results):
            if number == 3:
                with pytest.raises(ValueError, match=r"\[3\]"):
                    result.result(60)
            else:
                assert result.result(60) == 2 * number
    with pytest.raises(ValueError, match=r"\[3\]"):
        calls(3)
    assert calls(9) == 18


class Interrupted(BaseException):
    """A signal's handler raised it in a thread that waits."""


@pytest.mark.parametrize("who", ["the one that works", "the next one", "one further behind"])
def test_a_thread_that_is_interrupted_holds_nobody_up(
    who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work()
    victim = {"the one that works": 0, "the next one": 1, "one further behind": 5}[who]

    class Call(combined._Call[int, int]):
        def __init__(self, item: int) -> None:
            super().__init__(item)
            if item == victim != 0:
                self.turn = InterruptedLock()  # type: ignore[assignment]

    class InterruptedLock:
        """A lock whose waiter is interrupted at the moment that the work may go on."""

        def acquire(self) -> bool:
            assert work.is_open.wait(60)
            raise Interrupted

        def release(self) -> None: ...

    def interrupted(items: Sequence[int]) -> list[int]:
        done = work(items)
        if victim == 0 and 0 in items:
            raise Interrupted
        return done

    monkeypatch.setattr(combined, "_Call", Call)
    calls = Combined(interrupted, most=100)
    with ThreadPoolExecutor(THREADS) as pool:
        results = call_all(calls, pool, work)
        work.is_open.set()
        for number, result in enumerate(results):
            if number == victim:
                with pytest.raises(Interrupted):
                    result.result(60)
            else:
                assert result.result(60) == 2 * number
    assert calls(9) == 18
