"""The bytes of calls in hand: never more than allowed, each in its turn, none for ever."""

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from promptstack.services.execution.bytes_in_flight import BytesInFlight, Room

MOST = 100
SIZES = st.integers(1, 150)
"""Some are larger than all there is."""


class Sharing(RuleBasedStateMachine):
    """Rooms are asked for, given back and withdrawn in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = BytesInFlight(MOST)
        self.given: list[Room] = []
        self.line: deque[Room] = deque()
        self.told: list[Room] = []

    @rule(size=SIZES)
    def ask(self, size: int) -> None:
        room = self.memory.ask(size, lambda: self.told.append(room))
        (self.given if room.is_given else self.line).append(room)

    @rule()
    def ask_for_nothing(self) -> None:
        assert self.memory.ask(0, pytest.fail).is_given

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def withdraw_given(self, data: st.DataObject) -> None:
        self.memory.withdraw(self._drawn(data))
        self._move_told()

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def give_back_in_parts(self, data: st.DataObject) -> None:
        room = self._drawn(data)
        first = data.draw(st.integers(0, room.size))
        for part in (first, room.size - first):
            self.memory.give_back(part)
        self._move_told()

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def stop_waiting(self, data: st.DataObject) -> None:
        room = data.draw(st.sampled_from(list(self.line)))
        self.line.remove(room)
        self.memory.withdraw(room)
        self._move_told()

    @invariant()
    def no_more_is_held_than_there_is(self) -> None:
        held = sum(room.size for room in self.given)
        assert held <= MOST or len(self.given) == 1

    @invariant()
    def nobody_waits_without_need(self) -> None:
        if self.line:
            held = sum(room.size for room in self.given)
            assert held
            assert held + self.line[0].size > MOST
        assert not any(room.is_given for room in self.line)

    def teardown(self) -> None:
        while self.given:
            self.memory.withdraw(self.given.pop())
            self._move_told()
        assert not self.line

    def _drawn(self, data: st.DataObject) -> Room:
        room = data.draw(st.sampled_from(self.given))
        self.given.remove(room)
        return room

    def _move_told(self) -> None:
        """Those that were given room are told once, in the order in which they asked."""
        for room in self.told:
            assert room is self.line.popleft()
            self.given.append(room)
        self.told.clear()


TestSharing = Sharing.TestCase


def test_many_small_calls_do_not_keep_a_large_one_waiting() -> None:
    memory = BytesInFlight(MOST)
    small = [memory.ask(20, lambda: None) for _ in range(5)]
    large = memory.ask(90, lambda: None)
    for _ in range(5):
        small.append(memory.ask(20, lambda: None))
        memory.withdraw(small.pop(0))
    assert large.is_given
    assert not any(room.is_given for room in small)


def test_a_job_waits_for_room_and_gives_it_back_however_it_ends() -> None:
    async def alone(work: Coroutine[Any, Any, object]) -> object:
        return await work

    async def scenario() -> None:
        memory, order = BytesInFlight(MOST), list[str]()

        async def job(name: str, error: Exception | None = None) -> None:
            async with memory.hold(60, alone):
                order.append(name)
                await asyncio.sleep(0)
                if error is not None:
                    raise error

        first = asyncio.create_task(job("first", ValueError("It failed.")))
        gone, last = asyncio.create_task(job("gone")), asyncio.create_task(job("last"))
        await asyncio.sleep(0)
        gone.cancel()
        results = await asyncio.gather(first, gone, last, return_exceptions=True)
        assert order == ["first", "last"]
        assert [type(result) for result in results] == [
            ValueError,
            asyncio.CancelledError,
            type(None),
        ]
        assert memory.ask(MOST, lambda: None).is_given

    asyncio.run(scenario())
