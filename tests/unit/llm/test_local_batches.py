"""Calls of the local model go together, in order, and each fails alone."""

import asyncio
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from promptstack.services.llm.errors import BadResponse, Overloaded
from promptstack.services.llm.local import MODEL, LocalService
from promptstack.services.llm.local_batches import MOST_WAITING, Batches, Embedded
from promptstack.services.llm.packing import EmbeddingLimits

LIMITS = EmbeddingLimits(items=64, bytes=2_000)
SECONDS = 30.0


class FakeModel:
    """Remembers its calls; works on the first one until it may go on."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.threads: set[int] = set()
        self.has_begun = threading.Event()
        self.may_go_on = threading.Event()

    def embed(self, texts: Sequence[str]) -> list[Embedded | Exception]:
        self.calls.append(list(texts))
        self.threads.add(threading.get_ident())
        self.has_begun.set()
        assert self.may_go_on.wait(SECONDS)
        if "broken" in texts:
            raise MemoryError("The model broke.")
        return [
            ValueError(f"{text} is bad.")
            if text.startswith("bad")
            else Embedded(np.array([float(text)], np.float32), 1)
            for text in texts
        ]


@pytest.fixture
def model() -> Iterator[FakeModel]:
    made = FakeModel()
    yield made
    made.may_go_on.set()


async def begun(model: FakeModel) -> None:
    assert await asyncio.to_thread(model.has_begun.wait, SECONDS)


def test_the_first_goes_at_once_and_what_comes_meanwhile_goes_together(model: FakeModel) -> None:
    async def scenario() -> list[list[Embedded]]:
        batches = Batches(model.embed, LIMITS)
        first = asyncio.create_task(batches.embed(["0"]))
        # It has begun before any other comes; and the event loop runs on while the model works.
        await begun(model)
        others = [asyncio.create_task(batches.embed([str(number)])) for number in range(1, 101)]
        await asyncio.sleep(0)
        model.may_go_on.set()
        found = await asyncio.gather(first, *others)
        batches.close()
        return found

    found = asyncio.run(scenario())
    assert list(map(len, model.calls)) == [1, 64, 36]
    assert [one.vector.item() for [one] in found] == list(range(101))
    assert model.threads.isdisjoint({threading.get_ident()})
    assert len(model.threads) == 1


Call = tuple[list[str], bool]
"""The texts, and whether the caller gives up while it waits."""
TEXTS = st.lists(st.sampled_from(["1", "2", "3", "bad", "4" * 30]), min_size=1, max_size=5)


@effort(max_examples=30)
@given(
    st.lists(st.tuples(TEXTS, st.booleans()), max_size=15), st.integers(1, 8), st.integers(1, 60)
)
def test_each_call_gets_its_own_whatever_the_others_do(
    calls: list[Call], items: int, size: int
) -> None:
    model = FakeModel()

    async def scenario() -> list[object]:
        batches = Batches(model.embed, EmbeddingLimits(items=items, bytes=size))
        first = asyncio.create_task(batches.embed(["0"]))
        await begun(model)
        tasks = [asyncio.create_task(batches.embed(texts)) for texts, _ in calls]
        await asyncio.sleep(0)
        for task, (_, gives_up) in zip(tasks, calls, strict=True):
            if gives_up:
                task.cancel()
        await asyncio.sleep(0)
        model.may_go_on.set()
        found = await asyncio.gather(first, *tasks, return_exceptions=True)
        batches.close()
        return list(found[1:])

    found = asyncio.run(scenario())
    for (texts, gives_up), answer in zip(calls, found, strict=True):
        if gives_up:
            assert isinstance(answer, asyncio.CancelledError)
        elif "bad" in texts:
            assert isinstance(answer, ValueError)
        else:
            assert isinstance(answer, list)
            assert [one.vector.item() for one in answer] == [np.float32(float(t)) for t in texts]
    # Every call is as full as it may be, and what was given up costs nothing.
    expected: list[list[str]] = [["0"]]
    for texts in (texts for texts, gives_up in calls if not gives_up):
        together = [*expected[-1], *texts]
        is_over = len(together) > items or sum(map(len, together)) > size
        if len(expected) == 1 or is_over:
            expected.append(texts)
        else:
            expected[-1] = together
    assert model.calls == expected


def test_a_model_that_breaks_is_told_to_all_and_works_again(model: FakeModel) -> None:
    model.may_go_on.set()

    async def scenario() -> None:
        batches = Batches(model.embed, LIMITS)
        with pytest.raises(MemoryError):
            await batches.embed(["1", "broken"])
        [again] = await batches.embed(["2"])
        assert again.vector.item() == 2
        batches.close()

    asyncio.run(scenario())


def test_only_so_many_calls_wait(model: FakeModel) -> None:
    async def scenario() -> None:
        batches = Batches(model.embed, LIMITS)
        first = asyncio.create_task(batches.embed(["0"]))
        await begun(model)
        waiting = [asyncio.create_task(batches.embed(["1"])) for _ in range(MOST_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="2,048 calls wait"):
            await batches.embed(["1"])
        model.may_go_on.set()
        await asyncio.gather(first, *waiting)
        batches.close()

    asyncio.run(scenario())


def test_a_text_without_a_vector_fails_alone() -> None:
    async def scenario() -> list[object]:
        service = LocalService()
        texts = ["fine", "", "good"]
        calls = (service.embed([text], MODEL, None) for text in texts)
        found = await asyncio.gather(*calls, return_exceptions=True)
        await service.aclose()
        return list(found)

    fine, empty, good = asyncio.run(scenario())
    assert isinstance(empty, BadResponse)
    assert not isinstance(fine, BaseException)
    assert not isinstance(good, BaseException)
