"""Steps of many jobs in one transaction: each is what it would be alone."""

import asyncio
import threading
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.jobs.records import (
    BeginStep,
    Claim,
    ClaimStep,
    JobSnapshot,
    NewCall,
    SucceedStep,
)
from promptstack.repositories.jobs.steps import StepRepository
from promptstack.repositories.models import AttemptState, Job, JobState
from promptstack.repositories.session import Ledger
from promptstack.services.budgets.service import OF_DEPLOYMENT
from promptstack.services.errors import SpendingHeld
from promptstack.services.execution.group_commit import GroupCommit
from promptstack.tasks.worker_services import WorkerServices
from tests.processes import wait_until

JOBS = 24
CALL = NewCall(0, "demo", "demo-1", 1, 7, Decimal("0.0000000125"))
TOOK = {
    "billing": "billed",
    "input_tokens": 3,
    "output_tokens": 4,
    "cached_tokens": 1,
    "cost_usd": Decimal("0.0000000375"),
    "latency_seconds": 0.25,
    "limiter_wait_seconds": None,
    "provider_request_id": "req_1",
}


@pytest.fixture
def ledger(stack: WorkerServices) -> Ledger:
    return stack.ledger


@pytest.fixture
def jobs(stack: WorkerServices) -> list[UUID]:
    stack.heartbeat.beat()
    return [stack.jobs.enqueue_generation(f"Question {number}").id for number in range(JOBS)]


def together(stack: WorkerServices, steps: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Make steps at once; what each returned, or the error that it raised."""

    async def make() -> list[Any]:
        return await asyncio.gather(*steps, return_exceptions=True)

    return stack.loop.run(make())


def claim_all(ledger: Ledger, worker: UUID, ids: list[UUID]) -> dict[UUID, Claim]:
    with ledger.transaction() as unit:
        return unit.steps.claim_batch([ClaimStep(id_, None) for id_ in ids], worker)


def job(ledger: Ledger, job_id: UUID) -> Job:
    with ledger.transaction() as unit:
        found = unit.jobs.get_with_attempts(job_id)
        assert found is not None
        _ = found.result  # not loaded by itself
        return found


def test_jobs_that_run_at_once_are_written_together(
    stack: WorkerServices, ledger: Ledger, jobs: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = StepRepository.succeed_batch

    def succeed(self: StepRepository, answers: Any) -> Any:
        sizes.append(len(answers))
        return real(self, answers)

    monkeypatch.setattr(StepRepository, "succeed_batch", succeed)
    commits: list[Any] = []
    _ = stack.executor, stack.limiter
    event.listen(ledger.engine, "commit", commits.append)
    outcomes = together(stack, [stack.executor.run(id_, lambda _: None) for id_ in jobs])
    assert [outcome.state for outcome in outcomes] == [JobState.SUCCEEDED] * JOBS
    assert max(sizes) > 1
    assert len(commits) < 4 * JOBS
    for id_, outcome in zip(jobs, outcomes, strict=True):
        found = job(ledger, id_)
        (attempt,) = found.attempts
        assert found.result is not None
        assert found.result["text"]
        assert (found.state, found.current, found.attempt) == (JobState.SUCCEEDED, 1, 1)
        assert attempt.state == AttemptState.SUCCEEDED
        assert outcome.summary["tokens"] == found.result["tokens_used"]
        assert outcome.summary["calls"] == 1


def test_of_two_messages_of_a_job_one_claims_it(stack: WorkerServices, jobs: list[UUID]) -> None:
    claim = stack.group_commit.claim
    claims = together(stack, [claim(ClaimStep(id_)) for id_ in jobs * 2])
    taken = [claim for claim in claims if claim is not None]
    assert sorted(claim.job_id for claim in taken) == sorted(jobs)
    assert {claim.attempt for claim in taken} == {1}


def test_a_batch_says_of_a_claim_what_a_single_one_says(
    stack: WorkerServices, ledger: Ledger, jobs: list[UUID]
) -> None:
    claims = claim_all(ledger, stack.worker_id, jobs[:1])
    with ledger.transaction() as unit:
        alone = unit.steps.claim(jobs[1], stack.worker_id)
    assert alone is not None
    found = claims[jobs[0]]
    for name in ("attempt", "worker_id", "user_id", "provider", "model", "max_retries", "is_bulk"):
        assert getattr(found, name) == getattr(alone, name)
    assert found.request == alone.request | {"prompt": "Question 0"}
    assert found.seconds_left == pytest.approx(alone.seconds_left, abs=5)


def test_a_lost_claim_begins_no_call_and_its_late_answer_ends_no_job(
    stack: WorkerServices, ledger: Ledger, jobs: list[UUID]
) -> None:
    claims = claim_all(ledger, stack.worker_id, jobs[:2])
    held, lost = (claims[id_] for id_ in jobs[:2])
    answer = {"text": 'An "é" \\ \n'}
    with ledger.transaction() as unit:
        begun = unit.attempts.begin([BeginStep(held, CALL), BeginStep(lost, CALL)])
    stack.jobs.cancel(jobs[1])
    with ledger.transaction() as unit:
        again = unit.attempts.begin([BeginStep(held, CALL), BeginStep(lost, CALL)])
        snapshots = unit.steps.succeed_batch(
            [
                SucceedStep(claim, begun[claim.job_id, 0].attempt_id, answer, TOOK)
                for claim in (held, lost)
            ]
        )
    assert {key: one.is_new for key, one in begun.items()} == {
        (held.job_id, 0): True,
        (lost.job_id, 0): True,
    }
    assert again == {(held.job_id, 0): replace(begun[held.job_id, 0], is_new=False)}
    for claim, state in ((held, JobState.SUCCEEDED), (lost, JobState.CANCELLED)):
        stored = job(ledger, claim.job_id)
        (attempt,) = stored.attempts
        assert stored.state == state
        assert stored.result == answer
        assert {name: getattr(attempt, name) for name in TOOK} == TOOK
        assert attempt.state == AttemptState.SUCCEEDED
        assert attempt.expected_cost_usd == CALL.expected_cost_usd
        with ledger.transaction() as unit:
            assert snapshots[claim.job_id] == unit.steps.snapshot(claim.job_id)


def test_a_settled_attempt_with_its_bill_stays_as_it_is(
    stack: WorkerServices, ledger: Ledger, jobs: list[UUID]
) -> None:
    claim = claim_all(ledger, stack.worker_id, jobs[:1])[jobs[0]]
    with ledger.transaction() as unit:
        begun = unit.attempts.begin([BeginStep(claim, CALL)])
    id_ = begun[claim.job_id, 0].attempt_id
    with ledger.transaction() as unit:
        unit.attempts.settle(id_, AttemptState.LOST)
    answered = {"attempt_id": id_, "state": AttemptState.SUCCEEDED, **TOOK}
    for settled in ({id_}, set()):
        with ledger.transaction() as unit:
            assert unit.attempts.settle_many([answered]) == settled
    with ledger.transaction() as unit:
        unit.attempts.settle(id_, AttemptState.FAILED, error_code="X")
    (attempt,) = job(ledger, claim.job_id).attempts
    assert (attempt.state, attempt.error_code) == (AttemptState.SUCCEEDED, None)
    assert {name: getattr(attempt, name) for name in TOOK} == TOOK


def test_a_step_that_comes_alone_does_not_wait(
    stack: WorkerServices, ledger: Ledger, jobs: list[UUID]
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def make() -> None:
        group = GroupCommit(ledger, stack.retrying_ledger, stack.worker_id, sleep=sleep)
        for id_ in jobs:
            claim = await group.claim(ClaimStep(id_))
            assert claim is not None
            assert await group.begin(BeginStep(claim, CALL), lambda: None)
        group.close()

    stack.loop.run(make())
    assert slept == []


def test_a_failed_batch_leaves_each_step_to_its_own_transaction(
    stack: WorkerServices, ledger: Ledger, jobs: list[UUID]
) -> None:
    claims = claim_all(ledger, stack.worker_id, jobs)
    with ledger.transaction() as unit:
        begun = unit.attempts.begin([BeginStep(claim, CALL) for claim in claims.values()])

    async def succeed(claim: Claim) -> JobSnapshot | None:
        # jsonb has no zero character: the database refuses this one answer.
        text = "\0" if claim.job_id == jobs[0] else "x"
        attempt = begun[claim.job_id, 0]
        step = SucceedStep(claim, attempt.attempt_id, {"text": text}, TOOK)
        return await stack.group_commit.succeed(step)

    outcomes = together(stack, [succeed(claims[id_]) for id_ in jobs])
    assert isinstance(outcomes[0], DBAPIError)
    assert {outcome.state for outcome in outcomes[1:]} == {JobState.SUCCEEDED}


def test_one_row_that_is_locked_holds_up_nobody_else(
    stack: WorkerServices, ledger: Ledger, jobs: list[UUID]
) -> None:
    with ledger.transaction() as unit:
        unit.limit_statements(60.0, idle=60.0)
        assert unit.jobs.cancel(jobs[0])
        run = stack.executor.run
        locked, *others = [stack.loop.submit(run(id_, lambda _: None)) for id_ in jobs]
        for other in others:
            other.result(50.0)
        assert not locked.done()
        unit.session.commit()
    locked.result(50.0)
    assert job(ledger, jobs[0]).state == JobState.CANCELLED


def test_a_check_that_fails_stops_its_own_step_only(
    stack: WorkerServices, ledger: Ledger, jobs: list[UUID]
) -> None:
    claims = claim_all(ledger, stack.worker_id, jobs)
    group = stack.group_commit

    async def begin(claim: Claim) -> int:
        def check() -> None:
            if claim.job_id == jobs[0]:
                raise ClaimLost("Not any more.")

        return await group.begin(BeginStep(claim, CALL), check)

    begun = together(stack, [begin(claims[id_]) for id_ in jobs])
    assert isinstance(begun[0], ClaimLost)
    assert not job(ledger, jobs[0]).attempts
    assert all(isinstance(other, int) for other in begun[1:])


def test_two_answers_of_one_job_in_a_batch_are_both_written(
    stack: WorkerServices, ledger: Ledger, jobs: list[UUID]
) -> None:
    """An attempt that was taken over answers at the same time as its successor."""
    stale = claim_all(ledger, stack.worker_id, jobs[:1])[jobs[0]]
    with ledger.transaction() as unit:
        old = unit.attempts.begin([BeginStep(stale, CALL)])[stale.job_id, 0]
        unit.steps.release(stale.job_id, stale.attempt)
    held = claim_all(ledger, stack.worker_id, jobs[:1])[jobs[0]]
    with ledger.transaction() as unit:
        new = unit.attempts.begin([BeginStep(held, CALL)])[held.job_id, 0]
    other = claim_all(ledger, stack.worker_id, jobs[1:2])[jobs[1]]
    group = stack.group_commit
    leads, both_wait = threading.Event(), threading.Event()

    def check() -> None:
        """Hold up the first batch, so that both answers wait for the next one."""
        leads.set()
        assert both_wait.wait(30.0)

    async def answer(claim: Claim, attempt_id: int, text: str) -> JobSnapshot | None:
        return await group.succeed(SucceedStep(claim, attempt_id, {"text": text}, TOOK))

    leading = stack.loop.submit(group.begin(BeginStep(other, CALL), check))
    assert leads.wait(30.0)
    late = stack.loop.submit(answer(stale, old.attempt_id, "late"))
    wait_until(lambda: group.waiting_steps == 1, "the late answer")
    right = stack.loop.submit(answer(held, new.attempt_id, "right"))
    wait_until(lambda: group.waiting_steps == 2, "the right answer")
    both_wait.set()
    for one in (leading, late, right):
        one.result(30.0)
    stored = job(ledger, jobs[0])
    assert (stored.state, stored.result) == (JobState.SUCCEEDED, {"text": "right"})
    assert [attempt.state for attempt in stored.attempts] == [AttemptState.SUCCEEDED] * 2


def test_a_call_of_a_stale_attempt_does_not_leave_beside_one_of_its_successor(
    stack: WorkerServices, ledger: Ledger, jobs: list[UUID]
) -> None:
    stale = claim_all(ledger, stack.worker_id, jobs[:1])[jobs[0]]
    with ledger.transaction() as unit:
        unit.steps.release(stale.job_id, stale.attempt)
    held = claim_all(ledger, stack.worker_id, jobs[:1])[jobs[0]]
    fallback = replace(CALL, call=1)
    with ledger.transaction() as unit:
        begun = unit.attempts.begin([BeginStep(stale, fallback), BeginStep(held, CALL)])
    assert set(begun) == {(held.job_id, CALL.call)}
    assert [attempt.number for attempt in job(ledger, jobs[0]).attempts] == [held.attempt]


def test_a_claim_and_a_call_that_are_alone_are_one_exchange_each(
    stack: WorkerServices, ledger: Ledger, jobs: list[UUID]
) -> None:
    sent: list[tuple[str, bool]] = []

    def note(connection: Any, _: Any, statement: str, *__: Any) -> None:
        sent.append((statement, connection.connection.dbapi_connection.autocommit))

    event.listen(ledger.engine, "before_cursor_execute", note)
    group = stack.group_commit
    [claim] = together(stack, [group.claim(ClaimStep(jobs[0]))])
    [attempt_id] = together(stack, [group.begin(BeginStep(claim, CALL), lambda: None)])
    assert [is_committed_by_itself for _, is_committed_by_itself in sent] == [True, True]
    assert all(statement.startswith("SET LOCAL lock_timeout") for statement, _ in sent)
    sent.clear()
    step = SucceedStep(claim, attempt_id, {"text": "x"}, TOOK)
    [snapshot] = together(stack, [group.succeed(step)])
    assert len(sent) == 3  # the limit on locks, the answer with its attempt, and what came of it
    assert (snapshot.state, snapshot.calls, snapshot.tokens) == (JobState.SUCCEEDED, 1, 7)
    [attempt] = job(ledger, jobs[0]).attempts
    assert (attempt.id, attempt.state) == (attempt_id, AttemptState.SUCCEEDED)
    with ledger.transaction() as unit:
        assert unit.session.scalar(text("SHOW lock_timeout")) == "0"


def test_an_answer_is_kept_by_a_job_that_has_ended(
    stack: WorkerServices, ledger: Ledger, jobs: list[UUID]
) -> None:
    group = stack.group_commit
    [claim] = together(stack, [group.claim(ClaimStep(jobs[0]))])
    [attempt_id] = together(stack, [group.begin(BeginStep(claim, CALL), lambda: None)])
    cancelled = stack.jobs.cancel(jobs[0])
    step = SucceedStep(claim, attempt_id, {"text": "x"}, TOOK)
    [snapshot] = together(stack, [group.succeed(step)])
    assert snapshot.state == JobState.CANCELLED
    found = job(ledger, jobs[0])
    assert (found.state, found.result) == (JobState.CANCELLED, {"text": "x"})
    assert found.finished_at == cancelled.finished_at
    assert [attempt.state for attempt in found.attempts] == [AttemptState.SUCCEEDED]


def test_a_call_that_is_alone_leaves_within_its_budget_only(
    stack: WorkerServices, jobs: list[UUID]
) -> None:
    group = stack.group_commit
    [claim] = together(stack, [group.claim(ClaimStep(jobs[0]))])
    stack.budgets.set(OF_DEPLOYMENT, {"day": "0.015"})
    calls = [replace(CALL, call=number, most_usd=lambda: Decimal("0.01")) for number in range(2)]
    [first] = together(stack, [group.begin(BeginStep(claim, calls[0]), lambda: None)])
    assert isinstance(first, int)
    [second] = together(stack, [group.begin(BeginStep(claim, calls[1]), lambda: None)])
    assert isinstance(second, SpendingHeld)
