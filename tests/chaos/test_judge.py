"""The judge of the chaos runs: it must see what is wrong, and not what isn't."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from promptstack.chaos.driver import Happened
from promptstack.chaos.judge import Judge
from promptstack.chaos.load import Accepted, Load, Target
from promptstack.chaos.plan import WITHOUT_API, Fault, draw
from promptstack.chaos.recovery import FREE, Spans, late
from promptstack.chaos.run import wait_for_the_rest
from promptstack.chaos.scorecard import Scorecard
from promptstack.chaos.servers import dsn
from promptstack.chaos.verdict import Verdict
from promptstack.repositories.models import AttemptState, Billing
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute


@pytest.fixture
def load(stack: WorkerServices) -> list[Accepted]:
    """Two jobs that have succeeded, watched from their beginning."""
    Judge(dsn(stack.database_url)).watch()
    target = Target("demo", None, embedding_model=None)
    sent = Load(stack.jobs, stack.ledger, target, name="test", seconds=0.0)
    sent.run(2)
    for job in sent.accepted:
        execute(stack, job.id)
    return sent.accepted


def judge(
    stack: WorkerServices,
    load: list[Accepted],
    *happened: Happened,
    billed: tuple[int, int] = (1, 1),
) -> Verdict:
    verdict = Judge(dsn(stack.database_url)).judge(
        load,
        happened,
        billed={job.billing_key: times for job, times in zip(load, billed, strict=True)},
        slots=1,
    )
    verdict.rebuilt = len(load)
    return verdict


def change(stack: WorkerServices, statement: str, **values: object) -> None:
    with stack.ledger.transaction() as unit:
        unit.session.execute(text(statement), values)


def test_a_good_run_passes(stack: WorkerServices, load: list[Accepted]) -> None:
    verdict = judge(stack, load)
    assert verdict.problems() == []
    assert (verdict.accepted, verdict.ended, verdict.calls_billed) == (2, {"succeeded": 2}, 2)


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("DELETE FROM jobs WHERE id = :id", "lost"),
        ("UPDATE jobs SET state = 'queued', finished_at = NULL WHERE id = :id", "not ended"),
        ("""UPDATE jobs SET result = '{"text": "x"}' WHERE id = :id""", "changed"),
        ("""UPDATE jobs SET result = '{"text": "x"}' WHERE id = :id""", "missing or another"),
        ("UPDATE jobs SET state = 'failed' WHERE id = :id", "changed"),
    ],
    ids=["deleted", "open", "another result", "wrong result", "another state"],
)
def test_what_must_not_be_is_found(
    stack: WorkerServices, load: list[Accepted], statement: str, found: str
) -> None:
    change(stack, statement, id=load[0].id)
    problems = judge(stack, load).problems()
    assert any(found in problem for problem in problems), problems


def lose_a_call(stack: WorkerServices, job_id: UUID, worker: UUID) -> None:
    """Put a call on record that came before the one that was answered, and was lost."""
    change(
        stack,
        "UPDATE attempts SET number = 2 WHERE job_id = :job; ",
        job=job_id,
    )
    change(
        stack,
        "INSERT INTO attempts (job_id, number, call, worker_id, provider, model, state, billing, "
        "started_at, finished_at) VALUES (:job, 1, 0, :worker, 'demo', 'demo-1', :state, :billing, "
        "now() - interval '30 s', now() - interval '10 s')",
        job=job_id,
        worker=worker,
        state=AttemptState.LOST,
        billing=Billing.UNKNOWN,
    )


def hit(worker: UUID, ago: float, fault: Fault = Fault.KILL) -> Happened:
    at = datetime.now(UTC) - timedelta(seconds=ago)
    return Happened(fault, at, at, worker)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (lambda worker: hit(worker, 20.0), None),
        (lambda worker: hit(worker, 40.0), "for no fault"),  # before the call
        (lambda worker: hit(worker, 5.0), "for no fault"),  # after it was missed
        (lambda worker: hit(uuid4(), 20.0), "for no fault"),  # another worker
        (lambda worker: hit(worker, 20.0, Fault.FLUSH), "for no fault"),  # breaks no call
    ],
    ids=["hit", "too early", "too late", "another worker", "another fault"],
)
def test_a_call_is_billed_twice_for_a_fault_that_hit_it_or_for_none(
    stack: WorkerServices,
    load: list[Accepted],
    fault: Callable[[UUID], Happened],
    problem: str | None,
) -> None:
    worker = uuid4()
    lose_a_call(stack, load[0].id, worker)
    verdict = judge(stack, load, fault(worker), billed=(2, 1))
    assert verdict.billed_twice == 1
    if problem is None:
        assert verdict.problems() == []
        assert verdict.billed_twice_by == {"kill": 1}
        assert verdict.in_flight_at_faults == 1
    else:
        assert any(problem in found for found in verdict.problems())


@pytest.mark.parametrize(
    ("killed", "outages", "free"),
    [
        (30.0, [], 20.0),
        (31.0, [], 21.0),
        (31.0, [(Fault.POSTGRES_KILL, 25.0, 23.0)], 19.0),
        # Not what was before or after it, nor the same time twice.
        (31.0, [(Fault.POSTGRES_KILL, 90.0, 60.0), (Fault.POSTGRES_RESTART, 5.0, 1.0)], 21.0),
        (31.0, [(Fault.POSTGRES_KILL, 25.0, 23.0), (Fault.POSTGRES_FULL, 24.0, 22.0)], 18.0),
        # Redis frees nobody.
        (31.0, [(Fault.REDIS_KILL, 25.0, 23.0)], 21.0),
    ],
)
def test_a_killed_workers_job_must_be_free_in_time_beyond_outages_of_the_ledger(
    stack: WorkerServices,
    load: list[Accepted],
    killed: float,
    outages: list[tuple[Fault, float, float]],
    free: float,
) -> None:
    worker, now = uuid4(), datetime.now(UTC)
    lose_a_call(stack, load[0].id, worker)  # missed ten seconds ago
    change(stack, "UPDATE attempts SET started_at = now() - interval '40 s' WHERE number = 1")
    away = [
        Happened(fault, now - timedelta(seconds=since), now - timedelta(seconds=until), None)
        for fault, since, until in outages
    ]
    verdict = judge(stack, load, hit(worker, killed), *away, billed=(2, 1))
    span = verdict.recovery[FREE]
    assert span.longest == pytest.approx(free, abs=0.9)
    is_late = any("of killed workers was free after" in found for found in verdict.problems())
    assert is_late == (free > 20.5)


@pytest.mark.parametrize(
    ("of_99_in_100", "longest", "found"),
    [
        (19.9, 29.9, []),
        (20.1, 29.9, ["1 of 100 jobs of killed workers was free after 20.1 s, not within 20 s"]),
        (19.9, 30.1, ["a job of a killed worker was free after 30.1 s, not within 30 s"]),
        (
            20.1,
            30.1,
            [
                "1 of 100 jobs of killed workers was free after 20.1 s, not within 20 s",
                "a job of a killed worker was free after 30.1 s, not within 30 s",
            ],
        ),
    ],
)
def test_a_run_passes_only_if_the_jobs_of_killed_workers_are_free_in_time(
    of_99_in_100: float, longest: float, found: list[str]
) -> None:
    recovery = {FREE: Spans.of([13.0] * 198 + [longest, of_99_in_100])}
    verdict = Verdict(
        accepted=200,
        ended={"succeeded": 200},
        failures={},
        lost=0,
        unfinished=0,
        changed_after_end=0,
        wrong=0,
        recovery=recovery,
        hit=200,
        rebuilt=200,
    )
    scorecard = Scorecard(1, 200, 60.0, {Fault.KILL: 9}, [], 0, verdict)
    assert scorecard.problems() == found
    assert scorecard.passed is (not found)
    assert scorecard.as_json()["passed"] is scorecard.passed
    # Where a worker counts as dead later, its jobs may be free as much later.
    assert late(recovery, 200, lost_seconds=12.3) == []


def test_killed_workers_whose_jobs_nobody_measured_show_nothing(
    stack: WorkerServices, load: list[Accepted]
) -> None:
    worker = uuid4()
    lose_a_call(stack, load[0].id, worker)
    change(stack, "DELETE FROM attempts WHERE number = 2")
    verdict = judge(stack, load, hit(worker, 20.0))
    assert verdict.hit == 1
    assert "of 1 jobs of killed workers none was measured" in verdict.problems()


def test_the_rest_is_waited_for_as_long_as_anything_moves() -> None:
    left, moves, looks = [True], iter(range(1_000)), []

    def movement() -> tuple[int, int]:
        looks.append(next(moves))
        if looks[-1] == 4:
            left[0] = False
        return (1, looks[-1])

    wait_for_the_rest(0.0, lambda: left[0], movement, patience=0.9, say=lambda line: None)
    assert looks[-1] == 4, "two seconds, with less patience than that"
    still: list[int] = []

    def stands_still() -> tuple[int, int]:
        still.append(1)
        return (1, 1)

    wait_for_the_rest(0.0, lambda: True, stands_still, patience=0.9, say=lambda line: None)
    assert len(still) < 10


def test_a_bill_without_a_record_is_found(stack: WorkerServices, load: list[Accepted]) -> None:
    assert any("not on record" in found for found in judge(stack, load, billed=(3, 1)).problems())


def test_a_bill_without_any_record_is_found(stack: WorkerServices, load: list[Accepted]) -> None:
    change(stack, "DELETE FROM attempts WHERE job_id = :id", id=load[0].id)
    assert any("not on record" in found for found in judge(stack, load).problems())


def test_books_of_another_provider_judge_nothing(
    stack: WorkerServices, load: list[Accepted]
) -> None:
    problems = judge(stack, load, billed=(0, 0)).problems()
    assert any("not on the provider's books" in found for found in problems)


def test_a_run_in_which_nothing_succeeded_does_not_pass(
    stack: WorkerServices, load: list[Accepted]
) -> None:
    Judge(dsn(stack.database_url)).unwatch()
    change(stack, "UPDATE jobs SET state = 'failed', result = NULL")
    Judge(dsn(stack.database_url)).watch()
    assert any("no job succeeded" in found for found in judge(stack, load).problems())


def test_what_others_do_to_their_jobs_meanwhile_is_no_problem(
    stack: WorkerServices, load: list[Accepted]
) -> None:
    other = stack.jobs.enqueue_generation("x")
    stack.jobs.cancel(other.id)
    stack.jobs.retry(other.id)
    assert judge(stack, load).problems() == []


def test_the_same_seed_plans_the_same_and_all_that_is_asked_for() -> None:
    plan = draw(3, 60.0, kills=7, times=2)
    assert plan == draw(3, 60.0, kills=7, times=2) != draw(4, 60.0, kills=7, times=2)
    counts = {fault: sum(one.fault is fault for one in plan) for fault in Fault}
    assert counts == dict.fromkeys(WITHOUT_API, 2) | {Fault.KILL: 7, Fault.API_KILL: 0}
    assert all(0 <= one.at <= 60 and 0 <= one.choice < 1 for one in plan)
    assert draw(3, 60.0, kills=5, times=1, faults=[Fault.CUT])[0].fault is Fault.CUT
