"""Small calls that come at the same time share a job; none fails for another's sake."""

import asyncio
from collections.abc import Sequence

import pytest

from promptstack.services.llm.packing import EmbeddingInput
from promptstack.services.vectors.packing import MOST_INPUTS, SMALL_BYTES, Packing

LONG = 60.0
"""Nobody is gathered for so long: a test that waits for it hangs."""


class Jobs:
    """What was begun, and an end for each that a test sets."""

    def __init__(self) -> None:
        self.begun: list[list[EmbeddingInput]] = []
        self.ends: list[asyncio.Event] = []
        self.cancelled = 0
        self.news = asyncio.Event()

    async def begin(self, kind: str, inputs: Sequence[EmbeddingInput]) -> list[str]:
        self.begun.append(list(inputs))
        self.ends.append(asyncio.Event())
        self.news.set()
        try:
            await self.ends[-1].wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [f"{kind}:{one}" for one in inputs]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def until(jobs: Jobs, number: int) -> None:
    async with asyncio.timeout(LONG / 2):
        while len(jobs.begun) < number:
            jobs.news.clear()
            await jobs.news.wait()


def packing(jobs: Jobs, gather_seconds: float = 0.01) -> Packing[str, list[str]]:
    return Packing(jobs.begin, gather_seconds=gather_seconds)


async def asked(packing: Packing[str, list[str]], *inputs: str, kind: str = "k") -> list[str]:
    answer, first = await packing.ask(kind, inputs)
    return answer[first : first + len(inputs)]


def test_a_lone_call_waits_for_nobody() -> None:
    async def run() -> None:
        jobs = Jobs()
        calls = packing(jobs, LONG)
        for name in ("a", "b"):
            call = asyncio.create_task(asked(calls, name))
            await settle()
            jobs.ends[-1].set()
            assert await call == [f"k:{name}"]
        assert jobs.begun == [["a"], ["b"]]

    asyncio.run(run())


def test_calls_that_come_meanwhile_share_a_job_and_each_gets_its_own() -> None:
    async def run() -> None:
        jobs = Jobs()
        calls = packing(jobs)
        first = asyncio.create_task(asked(calls, "a"))
        await settle()
        others = [asyncio.create_task(asked(calls, f"b{n}", f"c{n}")) for n in range(3)]
        await until(jobs, 2)
        for end in jobs.ends:
            end.set()
        assert await first == ["k:a"]
        assert [await one for one in others] == [[f"k:b{n}", f"k:c{n}"] for n in range(3)]
        assert jobs.begun == [["a"], ["b0", "c0", "b1", "c1", "b2", "c2"]]

    asyncio.run(run())


def test_calls_of_another_kind_and_large_ones_are_alone() -> None:
    async def run() -> None:
        jobs = Jobs()
        calls = packing(jobs, LONG)
        large = "x" * (SMALL_BYTES + 1)
        asking = [
            asyncio.create_task(asked(calls, "a")),
            asyncio.create_task(asked(calls, "b", kind="other")),
        ]
        await settle()
        asking.append(asyncio.create_task(asked(calls, large)))
        await settle()
        assert jobs.begun == [["a"], ["b"], [large]]
        for end in jobs.ends:
            end.set()
        await asyncio.gather(*asking)

    asyncio.run(run())


def test_a_full_job_begins_at_once() -> None:
    async def run() -> None:
        jobs = Jobs()
        calls = packing(jobs, LONG)
        asking = [asyncio.create_task(asked(calls, "a"))]
        await settle()
        part = ["b"] * 32
        asking += [asyncio.create_task(asked(calls, *part)) for _ in range(MOST_INPUTS // 32 + 1)]
        await settle()
        assert [len(inputs) for inputs in jobs.begun] == [1, MOST_INPUTS]
        for call in asking:
            call.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    asyncio.run(run())


def test_who_leaves_ends_the_job_only_if_nobody_else_waits() -> None:
    async def run() -> None:
        jobs = Jobs()
        calls = packing(jobs)
        alone = asyncio.create_task(asked(calls, "a"))
        await settle()
        leaves, stays = (asyncio.create_task(asked(calls, name)) for name in ("b", "c"))
        await until(jobs, 2)
        leaves.cancel()
        alone.cancel()
        await settle()
        assert jobs.cancelled == 1
        jobs.ends[1].set()
        assert await stays == ["k:c"]

    asyncio.run(run())


def test_an_error_of_all_is_everybodys() -> None:
    async def run() -> None:
        async def begin(kind: str, inputs: Sequence[EmbeddingInput]) -> list[str]:
            raise LookupError("Nobody is there.")

        calls = Packing(begin, gather_seconds=0.0)
        with pytest.raises(LookupError):
            await calls.ask("k", ["a"])
        with pytest.raises(LookupError):
            await calls.ask("k", ["a"])

    asyncio.run(run())
