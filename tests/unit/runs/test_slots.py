"""However many shards of a run take slots, the worker never has more calls in hand than it may."""

from collections import Counter
from decimal import Decimal
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from promptstack.repositories.run_models import Run
from promptstack.services.execution.content_calls import Call
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


@given(st.data())
def test_a_shard_gives_back_all_its_slots_whatever_its_calls_do(
    data: st.DataObject,
) -> None:
    slots = RunSlots(IN_FLIGHT)
    shard, others = ShardSlots(slots), slots.take(data.draw(st.integers(0, 10)))
    for number in range(data.draw(st.integers(0, 20))):
        shard.take(data.draw(st.integers(0, 20)))
        permitted = data.draw(st.integers(0, shard.waiting))
        refused = data.draw(st.integers(0, shard.waiting - permitted))
        recorded = [
            RecordedCall(Call([]), None, number, Decimal(0))
            for _ in range(data.draw(st.integers(0, permitted)))
        ]
        under_way = sorted(shard.recorded, key=lambda call: call.attempt_id)
        settled = under_way[: data.draw(st.integers(0, len(under_way)))]
        shard.update(permitted=permitted, refused=refused, settled=settled, recorded=recorded)
        if refused:
            shard.shrink()
        assert slots.take(1_000) == slots.total - others - shard.in_use
        slots.give_back(slots.total - others - shard.in_use)
    shard.release()
    assert slots.take(1_000) == slots.total - others
