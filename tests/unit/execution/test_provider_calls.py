"""A permit of the limiter is settled however its job goes on."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from promptstack.services.execution.active_jobs import ActiveJobs, HandedBack, JobHandle
from promptstack.services.execution.job_slots import JobSlots
from promptstack.services.execution.provider_calls import ProviderCall, ProviderCalls
from promptstack.services.limiter.limited_calls import LimitedCalls
from promptstack.services.limiter.terms import Need, Settlement


class Limiter:
    """Permits every call, and knows which permits are held."""

    patience_seconds = 3.0

    def __init__(self) -> None:
        self.held: set[object] = set()

    def settings_for(self, *_: object) -> object:
        return self

    async def acquire(self, *_: object) -> object:
        permit = object()
        self.held.add(permit)
        return permit

    def report(self, permit: object, _: Settlement) -> None:
        self.held.discard(permit)


class Group:
    """Records the attempt, and does something in the middle of it."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._meanwhile = meanwhile

    async def begin(self, *_: object) -> int:
        self._meanwhile()
        return 1


class Ledger:
    async def write_async(self, *_: object) -> None:
        pass


def handed_back(stop: Callable[[ActiveJobs], None]) -> set[object]:
    """Make a call of a worker that is stopped while the attempt is written."""
    limiter: Any = Limiter()

    async def make() -> None:
        loop: Any = SimpleNamespace(call_soon=lambda action: action())
        jobs = ActiveJobs(loop)
        service: Any = SimpleNamespace(
            check_configured=lambda: None, is_limited=True, name="x", credential="none"
        )

        async def get_async(_: str) -> Any:
            return service

        parts: dict[str, Any] = {
            "ledger": Ledger(),
            "group": Group(lambda: stop(jobs)),
            "providers": SimpleNamespace(get_async=get_async),
            "calls": LimitedCalls(limiter, timeout_seconds=5),
            "slots": JobSlots(1),
            "prices": SimpleNamespace(cost=lambda *_, **__: None),
            "backoff": None,
        }
        job: Any = SimpleNamespace(
            handle=JobHandle(uuid4(), jobs),
            claim=SimpleNamespace(provider="x", job_id=uuid4()),
        )

        async def answer(_: object) -> Any:
            raise AssertionError("no call may begin")

        call: ProviderCall[Any] = ProviderCall("x", "m", ask=answer, need=lambda _: Need(1))
        with pytest.raises(HandedBack):
            await ProviderCalls(**parts).make(job, call)
        # The slot is there for the next job.
        await asyncio.wait_for(parts["slots"].acquire(), 30)

    asyncio.run(make())
    held: set[object] = limiter.held
    return held


def test_a_permit_of_a_call_that_never_began_is_given_back() -> None:
    assert handed_back(ActiveJobs.stop) == set()


def test_no_permit_is_asked_for_by_a_worker_that_stops() -> None:
    limiter = Limiter()
    asked: list[object] = []

    async def make() -> None:
        loop: Any = SimpleNamespace(call_soon=lambda action: action())
        jobs = ActiveJobs(loop)
        slots = JobSlots(1)
        await slots.acquire()

        async def get_async(_: str) -> Any:
            return SimpleNamespace(check_configured=lambda: asked.append("a permit"))

        parts: dict[str, Any] = {
            "ledger": Ledger(),
            "group": Group(lambda: None),
            "providers": SimpleNamespace(get_async=get_async),
            "calls": LimitedCalls(limiter, timeout_seconds=5),  # type: ignore[arg-type]
            "slots": slots,
            "prices": None,
            "backoff": None,
        }
        job: Any = SimpleNamespace(handle=JobHandle(uuid4(), jobs), claim=None)
        call: ProviderCall[Any] = ProviderCall("x", "m", ask=lambda _: None, need=lambda _: Need(1))  # type: ignore[arg-type, return-value]
        waiting = asyncio.create_task(ProviderCalls(**parts).make(job, call))
        await asyncio.sleep(0)
        jobs.let_none_begin()
        slots.release()
        with pytest.raises(HandedBack):
            await waiting
        await asyncio.wait_for(slots.acquire(), 30)

    asyncio.run(make())
    assert asked == []
