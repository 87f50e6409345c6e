"""However many shards of a run take slots, the worker never has more calls in hand than it may."""

import asyncio
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from promptstack.repositories.run_models import Run
from promptstack.services.execution.bytes_in_flight import BytesInFlight
from promptstack.services.execution.content_calls import Call, Content
from promptstack.services.runs.shards.call_pool import RecordedCall
from promptstack.services.runs.shards.slots import RunSlots, ShardSlots, WorkerSlots

IN_FLIGHT = 7


def runs() -> list[Run]:
    return [Run(id=UUID(int=number), in_flight=IN_FLIGHT) for number in range(3)]


@given(st.integers(1, 50), st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=60))
def test_no_more_slots_are_taken_than_there_are(
    in_flight: int, steps: list[tuple[bool, int]]
) -> None:
    slots, taken = RunSlots(in_flight), 0
    assert slots.total == in_flight + max(1, in_flight // 2)
    for is_taking, number in steps:
        if is_taking:
            given_ = slots.take(number)
            assert given_ == min(number, slots.total - taken)
            taken += given_
        else:
            back = min(number, taken)
            slots.give_back(back)
            taken -= back


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 20)), max_size=60))
def test_released_slots_are_free_again_and_belong_to_no_other_run(
    takes: list[tuple[int, int]],
) -> None:
    worker, all_runs = WorkerSlots(), runs()
    held = [worker.of(run) for run in all_runs]  # as the shards that work on them
    taken: Counter[int] = Counter()
    for number, wanted in takes:
        taken[number] += worker.of(all_runs[number]).take(wanted)
        assert taken[number] <= held[number].total
    for number, run in enumerate(all_runs):
        asked = sum(wanted for one, wanted in takes if one == number)
        assert taken[number] == min(asked, held[number].total)
        worker.of(run).give_back(taken[number])
        assert worker.of(run).take(1_000) == held[number].total


def test_the_slots_of_a_run_that_no_shard_holds_are_forgotten() -> None:
    worker, run = WorkerSlots(), runs()[0]
    assert worker.of(run).take(3) == 3
    assert worker.of(run).take(1_000) == worker.of(run).total


MOST_BYTES = 40


def shard_of(slots: RunSlots, memory: BytesInFlight, wake: Callable[[], None]) -> ShardSlots:
    return ShardSlots(slots, memory, lambda call: len(call.contents), wake)


def call_of(size: int) -> Call:
    return Call([Content(bytes([number]), (number,), "text") for number in range(size)])


def free_bytes(memory: BytesInFlight) -> int:
    """How many bytes could be had one by one; nothing may wait for them."""
    rooms = [memory.ask(1, lambda: None) for _ in range(MOST_BYTES)]
    for room in reversed(rooms):
        memory.withdraw(room)
    return sum(room.is_given for room in rooms)


@given(st.data())
def test_a_shard_gives_back_all_its_slots_and_memory_whatever_its_calls_do(
    data: st.DataObject,
) -> None:
    slots, memory = RunSlots(IN_FLIGHT), BytesInFlight(MOST_BYTES)
    shard, others = shard_of(slots, memory, lambda: None), slots.take(data.draw(st.integers(0, 10)))
    asked: list[Call] = []
    for number in range(data.draw(st.integers(0, 20))):
        sizes = data.draw(st.lists(st.integers(0, 50), max_size=20))
        calls = [call_of(size) for size in sizes]
        asked += calls
        taken = shard.take(calls)
        assert shard.waiting.issuperset(calls[:taken])
        assert not shard.waiting.intersection(calls[taken:])
        waiting = data.draw(st.permutations([one for one in asked if one in shard.waiting]))
        permitted = waiting[: data.draw(st.integers(0, len(waiting)))]
        refused = waiting[len(permitted) :][: data.draw(st.integers(0, len(waiting)))]
        leaving = permitted[: data.draw(st.integers(0, len(permitted)))]
        # Of some contents, others may have paid meanwhile.
        recorded = [
            RecordedCall(call.only([b"\0", b"\1"]), None, number, Decimal(0)) for call in leaving
        ]
        under_way = sorted(shard.recorded, key=lambda call: call.attempt_id)
        settled = under_way[: data.draw(st.integers(0, len(under_way)))]
        shard.update(permitted=permitted, refused=refused, settled=settled, recorded=recorded)
        if refused:
            shard.shrink()
        shard.stop_asking()
        in_hand = [*shard.waiting, *(one.call for one in shard.recorded)]
        assert slots.take(1_000) == slots.total - others - shard.in_use
        slots.give_back(slots.total - others - shard.in_use)
        held = sum(len(call.contents) for call in in_hand)
        assert free_bytes(memory) == max(0, MOST_BYTES - held)
    shard.release()
    assert slots.take(1_000) == slots.total - others
    assert free_bytes(memory) == MOST_BYTES


def test_shards_that_lack_memory_take_turns() -> None:
    slots, memory, woken = RunSlots(100), BytesInFlight(MOST_BYTES), list[str]()
    first = shard_of(slots, memory, lambda: woken.append("first"))
    second = shard_of(slots, memory, lambda: woken.append("second"))
    calls = [call_of(10) for _ in range(8)]

    assert first.take(calls) == 4
    assert second.take(calls) == 0
    for turn in ("first", "second", "first"):
        over = next(iter(first.waiting))
        first.update(permitted=[over], refused=[], settled=[], recorded=[])
        assert woken.pop() == turn
        shard = second if turn == "second" else first
        assert shard.take(calls[4:]) == 1


def test_a_shard_that_may_not_go_on_keeps_no_memory_from_others() -> None:
    slots, memory = RunSlots(100), BytesInFlight(MOST_BYTES)
    first, second = (shard_of(slots, memory, lambda: None) for _ in range(2))
    large, small = call_of(30), call_of(20)
    first.take([large])
    assert second.take([small]) == 0
    first.update(permitted=[large], refused=[], settled=[], recorded=[])
    second.stop_asking()
    assert free_bytes(memory) == MOST_BYTES


ONE, OTHER, THIRD = UUID(int=101), UUID(int=102), UUID(int=103)


def run_of(user_id: UUID, number: int, in_flight: int = 32) -> Run:
    return Run(id=UUID(int=number), user_id=user_id, in_flight=in_flight)


def most_of(slots: RunSlots) -> int:
    return next(most for most in range(1, 2_000) if most + max(1, most // 2) == slots.total)


class Busy:
    """A shard with more calls than slots, until it ends."""

    def __init__(self, worker: WorkerSlots, run: Run, weight: float = 1.0) -> None:
        self.slots = worker.of(run, weight)
        self.shard = shard_of(self.slots, BytesInFlight(1_000_000), lambda: None)
        self.shard.take([call_of(1) for _ in range(1_000)])
        self.shard.note_left(1)

    @property
    def most(self) -> int:
        return most_of(self.slots)


def busy(worker: WorkerSlots, user: UUID, runs: int, in_flight: int = 32) -> list[Busy]:
    return [Busy(worker, run_of(user, user.int * 100 + n, in_flight)) for n in range(runs)]


def total(shards: list[Busy]) -> int:
    return sum(shard.most for shard in shards)


def test_a_user_of_many_runs_has_as_many_calls_in_a_worker_as_one_of_a_single_run() -> None:
    worker = WorkerSlots()
    many = busy(worker, ONE, 3)
    assert total(many) == 96  # alone with all of the worker
    [single] = busy(worker, OTHER, 1)
    assert single.most == 32
    assert 30 <= total(many) <= 32
    # A run that comes has no more to begin with.
    new = worker.of(run_of(ONE, 1))
    assert most_of(new) == 8
    single.shard.release()
    assert total(many) == 96


def test_a_shard_that_has_all_its_calls_in_hand_takes_nothing_from_others() -> None:
    worker = WorkerSlots()
    many = busy(worker, ONE, 3)
    slots = worker.of(run_of(OTHER, 10), 4.0)
    assert total(many) == 96  # it only begins
    shard = shard_of(slots, BytesInFlight(100), lambda: None)
    shard.take([call_of(1)])
    shard.note_left(0)
    assert total(many) == 96  # it waits for its last call
    shard.note_left(5)
    assert total(many) == 96  # it waits for memory, or for the limiter, and not for a slot


def test_two_users_who_use_the_same_are_not_cut() -> None:
    worker = WorkerSlots()
    shards = busy(worker, ONE, 3) + busy(worker, OTHER, 3)
    assert total(shards) == 192


def test_what_a_user_leaves_of_their_share_others_have() -> None:
    worker = WorkerSlots()
    many = busy(worker, ONE, 3)
    small = Busy(worker, run_of(OTHER, 10, 1), 4.0)
    assert small.most == 1
    assert 61 <= total(many) <= 63
    small.shard.release()
    assert total(many) == 96


def test_weights_say_who_has_more_calls_in_a_worker() -> None:
    worker = WorkerSlots()
    light = busy(worker, ONE, 3)
    heavy = [Busy(worker, run_of(OTHER, number), 4.0) for number in range(4)]
    assert total(heavy) == 128
    assert 30 <= total(light) <= 32
    # And nobody has less than one run could use, as nobody else has more for it.
    for one in heavy[1:]:
        one.shard.release()
    assert heavy[0].most == 32
    assert 30 <= total(light) <= 32


@given(
    st.lists(
        st.tuples(
            st.sampled_from([ONE, OTHER, THIRD]),
            st.integers(1, 64),
            st.sampled_from([0.1, 1.0, 2.0, 100.0]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_shares_waste_nothing_and_starve_nobody(given_: list[tuple[UUID, int, float]]) -> None:
    worker = WorkerSlots()
    weights = {user: weight for user, _, weight in given_}
    shards = [
        Busy(worker, run_of(user, number, in_flight), weights[user])
        for number, (user, in_flight, _) in enumerate(given_)
    ]
    for shard, (_, in_flight, _) in zip(shards, given_, strict=True):
        assert 1 <= shard.most <= in_flight
    largest = max(in_flight for _, in_flight, _ in given_)
    for user in weights:
        mine = [n for n, one in enumerate(given_) if one[0] == user]
        wanted = sum(given_[n][1] for n in mine)
        # One run's worth at least, but for what is lost by whole numbers.
        assert sum(shards[n].most for n in mine) >= min(wanted, largest) - len(mine)
    for shard in shards[1:]:
        shard.shard.release()
    assert shards[0].most == given_[0][1]


def test_calls_that_wait_leave_when_the_limit_has_grown() -> None:
    worker = WorkerSlots()
    runs_ = busy(worker, ONE, 4, 8)
    mine, others = runs_[0].slots, busy(worker, OTHER, 1, 8)
    sent, most_sent = 0, 0
    assert most_of(mine) == 2

    async def call(number: int) -> None:
        nonlocal sent, most_sent
        async with mine.concurrency:
            sent, most_sent = sent + 1, max(most_sent, sent + 1)
            assert sent <= most_of(mine)
            if number == 5:
                for other in others:
                    other.shard.release()
            await asyncio.sleep(0)
            sent -= 1

    async def run() -> None:
        waiting = [asyncio.create_task(call(number)) for number in range(30)]
        await asyncio.sleep(0)
        waiting[20].cancel()  # while it waits
        await asyncio.gather(*waiting, return_exceptions=True)
        assert sum(one.cancelled() for one in waiting) == 1

    asyncio.run(run())
    assert (sent, most_sent) == (0, 8)
    most_sent = 0
    asyncio.run(run())
    assert (sent, most_sent) == (0, 8)  # also of the one that was cancelled, the place is free
