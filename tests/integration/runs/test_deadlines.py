"""A run's deadline is its priority among the runs of its user. No worker runs."""

from collections import Counter
from datetime import timedelta
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from promptstack.repositories.models import new_id
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.tasks.worker_services import WorkerServices
from tests.runs import prompts

HOUR, DAY = 3_600.0, 86_400.0
RUN = """
INSERT INTO runs (id, kind, state, name, provider, model, parameters, in_flight, max_retries,
                  expires_at, served_at, started_at, total, last_position)
VALUES (:id, 'generation', 'running', '', 'demo', 'demo-1', '{}', 1, 1,
        now() + :left, now() - :waited, now(), 9, 9)
"""
SHARD = """
INSERT INTO jobs (id, kind, queue, state, run_id, provider, model, request, request_hash,
                  max_retries, expires_at)
VALUES (:id, 'shard', 'generation-bulk', 'running', :run, 'demo', 'demo-1', '{}', '', 1, now())
"""
Known = tuple[float, float, int]
"""Of a run: the seconds it has left, those it has waited, and its shards."""
times_left, waits, shards = st.floats(10, 60 * DAY), st.floats(0, DAY), st.integers(0, 5)
often = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30
)


def add_run(unit: UnitOfWork, known: Known) -> UUID:
    left, waited, shards = known
    run_id = new_id()
    values = {"left": timedelta(seconds=left), "waited": timedelta(seconds=waited)}
    unit.session.execute(text(RUN), {"id": run_id, **values})
    for _ in range(shards):
        unit.session.execute(text(SHARD), {"id": new_id(), "run": run_id})
    return run_id


def next_of(stack: WorkerServices, known: list[Known]) -> int:
    """Which of these runs, all of one user, gets the next shard."""
    with stack.ledger.transaction() as unit:
        added = [add_run(unit, one) for one in known]
        found = unit.scheduling.next_to_serve(None, "NONE", 8)
        assert found is not None
        chosen = added.index(found.id)
        unit.session.rollback()
    return chosen


@often
@given(st.lists(st.tuples(times_left, waits, shards), min_size=2, max_size=5), st.data())
def test_of_runs_that_are_else_alike_the_nearest_deadline_goes_first(
    stack: WorkerServices, known: list[Known], data: st.DataObject
) -> None:
    chosen = known[next_of(stack, known)]
    for left, waited, has in known:
        # No other has less time left, and fewer shards, and waits longer.
        assert not (left < chosen[0] - 1 and waited > chosen[1] + 1 and has <= chosen[2])
    # Any run is next once it has waited for a hundredth of its time, for each shard and one more.
    patient = data.draw(st.integers(0, len(known) - 1))
    left, _, has = known[patient]
    fresh = [(one[0], 0.0, one[2]) for one in known]
    fresh[patient] = (left, left * 0.01 * (has + 1) + 1, has)
    assert next_of(stack, fresh) == patient


@often
@given(st.floats(HOUR, 60 * DAY), st.floats(0.999, 1.001), waits, waits, shards, shards)
def test_deadlines_that_hardly_differ_change_nothing(
    stack: WorkerServices,
    left: float,
    like: float,
    waited: float,
    other_waited: float,
    has: int,
    other_has: int,
) -> None:
    unit = left * 0.01
    waited, other_waited = waited % (unit / 2), other_waited % (unit / 2)
    chosen = next_of(stack, [(left, waited, has), (left * like, other_waited, other_has)])
    if has != other_has:
        assert chosen == (0 if has < other_has else 1)
    elif abs(waited - other_waited) > unit * 0.02:
        assert chosen == (0 if waited > other_waited else 1)


def served(stack: WorkerServices, runs: list[UUID], times: int, seconds: float) -> list[int]:
    """Whose shards the next are, if each takes so many seconds and one runs at a time."""
    found = []
    for _ in range(times):
        with stack.ledger.transaction() as unit:
            run = unit.scheduling.next_to_serve(None, "NONE", 8)
            assert run is not None
            found.append(runs.index(run.id))
            unit.runs.note_served(run.id, run.next_position)
            # Time goes on.
            unit.session.execute(
                text("UPDATE runs SET served_at = served_at - :passed"),
                {"passed": timedelta(seconds=seconds)},
            )
    return found


def accept(stack: WorkerServices, expires_in: float) -> UUID:
    return stack.runs.generate(
        prompts(2), provider="demo", expires_in=expires_in, name=f"{expires_in}"
    ).id


def test_a_run_of_an_hour_goes_before_one_of_a_day_and_both_go_on(stack: WorkerServices) -> None:
    stack.shard_scheduler._shards_a_worker = 0
    day, hour = accept(stack, DAY), accept(stack, HOUR)
    found = served(stack, [day, hour], 60, 30.0)
    assert found[:25] == [1] * 25
    # The other waits for a hundredth of its time, and has a shard then.
    assert 1 <= Counter(found)[0] <= 4


def test_runs_of_about_the_same_deadline_take_turns(stack: WorkerServices) -> None:
    stack.shard_scheduler._shards_a_worker = 0
    runs = [accept(stack, DAY + extra) for extra in (0, 60, -60)]
    assert all(9 <= count <= 11 for count in Counter(served(stack, runs, 30, 30.0)).values())
