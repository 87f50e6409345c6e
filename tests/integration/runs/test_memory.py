"""Shards and documents share a worker's memory for vectors, and give all of it back."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from promptstack.repositories.models import JobState
from promptstack.repositories.run_models import RunState
from promptstack.services.llm.errors import InvalidProviderRequest, Overloaded
from promptstack.services.llm.packing import EmbeddingLimits
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.jobs import execute, padded
from tests.runs import work


class Crowded(FakeProvider):
    """Embeds two texts at once, slowly, and counts the calls that are under way together."""

    name = "crowded"
    limits = EmbeddingLimits(items=2, bytes=10_000)

    def __init__(self) -> None:
        super().__init__()
        self.under_way = self.most_under_way = 0

    async def called(self, texts: Sequence[str], failures: int) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(0.02)
            for text in texts:
                if text.startswith("bad"):
                    raise InvalidProviderRequest("It is refused.")
                if text.startswith("slow") and self.asked[text] == 1:
                    raise Overloaded("Come again.", status=503, retry_after=0.01)
        finally:
            self.under_way -= 1


@pytest.fixture(autouse=True)
def crowded(stack: WorkerServices) -> Crowded:
    return Crowded().serve(stack)


@pytest.mark.parametrize(("most", "is_alone"), [(1, True), (1_000_000, False)])
def test_only_so_many_calls_are_under_way_as_there_is_memory_for(
    stack: WorkerServices,
    crowded: Crowded,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    is_alone: bool,
) -> None:
    """Each call is larger than one byte, so it is alone; and nobody waits for ever."""
    monkeypatch.setattr(stack.settings, "worker_bytes_in_flight", most)
    monkeypatch.setattr(stack.settings, "shard_bytes", 80)
    texts = ["bad", "slow", *(f"text {number}" for number in range(22))]
    run = stack.runs.embed(texts, provider="crowded", in_flight=4)
    documents = [
        stack.jobs.enqueue_embedding(
            padded(f"Document {number}."), source=f"{number}.txt", provider="crowded"
        )
        for number in range(3)
    ]
    with ThreadPoolExecutor(3) as threads:
        outcomes = [threads.submit(execute, stack, one.id) for one in documents]
        done = work(stack, run.id)
        assert {one.result(60).state for one in outcomes} == {JobState.SUCCEEDED}
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 23, 1)
    assert (crowded.most_under_way == 1) == is_alone
    room = stack.bytes_in_flight.ask(most, lambda: None)
    assert room.is_given


class Wide(FakeProvider):
    name = "wide"
    limits = EmbeddingLimits(items=2_048, bytes=1_000_000)

    def vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.ones((len(texts), 1_536), np.float32)


def test_a_call_holds_no_more_texts_than_have_vectors_of_some_megabytes(
    stack: WorkerServices,
) -> None:
    wide = Wide().serve(stack)
    for name in ("first", "second"):
        run = stack.runs.embed([f"{name} {n}" for n in range(1_000)], provider="wide")
        assert work(stack, run.id).succeeded == 1_000
    # Of the first, the size of the vectors was not known yet.
    assert list(map(len, wide.batches)) == [256, 256, 256, 232, 512, 488]
