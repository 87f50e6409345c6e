"""The event loop of a worker waits for nothing that blocks: all calls of the worker share it."""

import threading

import pytest

from promptstack.repositories.models import JobState
from promptstack.services.llm.event_loop import EventLoop
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, employ
from tests.jobs import embed, execute, run
from tests.runs import one

LOOP = "event-loop"


class Slow(FakeProvider):
    """Counts tokens as a tokenizer does, which takes long; notes which thread does it."""

    def __init__(self) -> None:
        super().__init__()
        self.counted_by: set[str] = set()

    def tokens(self, text: str) -> int:
        self.counted_by.add(threading.current_thread().name)
        return super().tokens(text)


@pytest.fixture
def provider(stack: WorkerServices) -> Slow:
    provider = Slow()
    employ(stack, provider)
    return provider


def test_the_loop_has_the_name_that_these_tests_look_for() -> None:
    loop = EventLoop()

    async def name() -> str:
        return threading.current_thread().name

    assert loop.run(name()) == LOOP
    loop.close()


def test_tokens_of_a_document_are_counted_beside_it(stack: WorkerServices, provider: Slow) -> None:
    assert run(stack, embed(stack, "a", "b", "c")).state is JobState.SUCCEEDED
    assert provider.counted_by
    assert LOOP not in provider.counted_by


def test_tokens_of_a_run_are_counted_beside_it(stack: WorkerServices, provider: Slow) -> None:
    stack.runs.embed(["one", "two"], provider="fake")
    provider.counted_by.clear()
    (shard,) = one(stack, "SELECT id FROM jobs WHERE kind = 'shard'")
    assert execute(stack, shard).state is JobState.SUCCEEDED
    assert provider.counted_by
    assert LOOP not in provider.counted_by


def test_a_run_is_brought_on_beside_it(
    stack: WorkerServices, provider: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken_by: list[str] = []
    stack.runs.embed(["one", "two"], provider="fake")
    monkeypatch.setattr(
        stack.run_lifecycle, "wake", lambda: woken_by.append(threading.current_thread().name)
    )
    (shard,) = one(stack, "SELECT id FROM jobs WHERE kind = 'shard'")
    assert execute(stack, shard).state is JobState.SUCCEEDED
    assert len(woken_by) == 1
    assert LOOP not in woken_by
