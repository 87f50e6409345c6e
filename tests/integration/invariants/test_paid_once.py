"""An answer is stored before its message is acknowledged, and never paid for again."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from sqlalchemy import text

from promptstack.repositories.models import JobState
from promptstack.services.jobs.views import JobView
from promptstack.services.llm.errors import (
    Overloaded,
)
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, Gate, employ, raises
from tests.jobs import (
    another,
    attempts,
    claimed,
    embed,
    first_words,
    generate,
    make_due,
    padded,
    run,
    sql,
    two_users,
)
from tests.processes import wait_until


def test_the_attempt_is_recorded_before_the_request_is_sent(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    seen: list[tuple[int, int, str, int]] = []

    def look() -> None:
        with another(stack) as other, other.ledger.transaction() as unit:
            started = unit.attempts.get_many(state="started")
            seen.extend((row.number, row.call, row.provider, row.items) for row in started)
            assert {row.worker_id for row in started} == {stack.worker_id}

    provider.on_call = look
    run(stack, generate(stack))
    run(stack, embed(stack, "a", "b", "c"))
    assert seen == [(1, 0, "fake", 1), (1, 0, "fake", 2), (1, 1, "fake", 1)]
    with stack.ledger.transaction() as unit:
        settled = unit.attempts.get_many()
        assert {attempt.state for attempt in settled} == {"succeeded"}
        assert all(attempt.finished_at and attempt.latency_seconds for attempt in settled)


def test_stored_vectors_are_not_asked_for_again(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    job = embed(stack, "a", "b", "c", "d", "e")
    failing = raises(Overloaded("busy"))
    provider.on_call = lambda: failing() if provider.calls == 2 else None
    assert run(stack, job).state is JobState.QUEUED
    assert (stack.jobs.get(job.id).current, stack.jobs.get(job.id).total) == (2, 5)
    make_due(stack, job)
    assert run(stack, job).state is JobState.SUCCEEDED
    assert [first_words(batch) for batch in provider.batches] == [
        ["a", "b"],
        ["c", "d"],
        ["c", "d"],
        ["e"],
    ]
    result = stack.jobs.get(job.id).result
    assert result is not None
    assert (result["chunks"], result["embedded"], result["reused"]) == (5, 5, 0)


def test_the_same_passage_is_paid_for_once_within_a_document(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    """Also where its places are far enough apart to fall into different calls."""
    job = embed(stack, "a", "b", "c", "a", "d", "c", "b")
    assert run(stack, job).state is JobState.SUCCEEDED
    assert sorted(first_words(provider.embedded)) == ["a", "b", "c", "d"]
    result = stack.jobs.get(job.id).result
    assert result is not None
    assert (result["chunks"], result["embedded"], result["reused"]) == (7, 4, 3)
    assert (stack.jobs.get(job.id).current, stack.jobs.get(job.id).total) == (7, 7)


def test_the_same_passage_is_paid_for_once_over_all_documents(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    run(stack, embed(stack, "a", "b", source="one"))
    run(stack, embed(stack, "b", "c", source="two"))
    again = embed(stack, "a", "b", source="one")
    assert run(stack, again).state is JobState.SUCCEEDED
    run(stack, embed(stack, "a", "x", "b", source="one"))
    assert first_words(provider.embedded) == ["a", "b", "c", "x"]
    result = stack.jobs.get(again.id).result
    assert result is not None
    assert (result["embedded"], result["reused"], result["provider_calls"]) == (0, 2, 0)


def numbers(stack: WorkerServices, job: JobView) -> dict[str, Any]:
    assert run(stack, job).state is JobState.SUCCEEDED
    result = stack.jobs.get(job.id).result
    assert result is not None
    return {name: value for name, value in result.items() if name != "document_id"}


def test_users_pay_for_themselves_and_learn_nothing_of_each_other(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    ada, eve = two_users(stack)
    alone = numbers(stack, embed(stack, "a", "b", "c", user_id=ada))
    assert numbers(stack, embed(stack, "a", "b", "c", user_id=eve)) == alone
    assert numbers(stack, embed(stack, "a", "b", "c")) == alone  # of the command line
    assert first_words(provider.embedded) == ["a", "b", "c"] * 3
    for user in (ada, eve, None):
        again = numbers(stack, embed(stack, "b", "c", source="other", user_id=user))
        assert (again["embedded"], again["reused"], again["tokens_used"]) == (0, 2, 0)


def test_no_user_waits_for_a_text_of_another(stack: WorkerServices, provider: FakeProvider) -> None:
    ada, eve = two_users(stack)
    job = embed(stack, "a", "b", user_id=ada)
    with ThreadPoolExecutor(1) as pool, Gate(stack) as gate:
        provider.on_call = lambda: gate() if provider.calls == 1 else None
        first = pool.submit(run, stack, job)
        gate.wait()
        assert numbers(stack, embed(stack, "a", "b", user_id=eve))["embedded"] == 2
        gate.open()
        assert first.result(30).state is JobState.SUCCEEDED


def test_runs_and_documents_of_a_user_share_and_those_of_two_do_not(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    ada, eve = two_users(stack)
    run(stack, embed(stack, "a", user_id=ada))
    for user, paid in ((ada, 0), (eve, 1), (None, 1)):
        ready = stack.runs.prepare_embedding([padded("a")], provider="fake", user_id=user)
        assert ready.to_pay == paid
        stack.runs.discard(ready.run_id)


def test_shared_vectors_are_taken_and_no_number_tells_it(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    ada, eve = two_users(stack)
    with another(stack, share_vectors=True) as sharing:
        employ(sharing, provider)
        alone = numbers(sharing, embed(sharing, "a", "b", user_id=ada))
        assert numbers(sharing, embed(sharing, "a", "b", user_id=eve)) == alone
        assert set(alone) == {"chunks", "dimensions"}
    assert first_words(provider.embedded) == ["a", "b"]


def test_a_document_keeps_its_vectors_when_they_are_shared_no_longer_or_again(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    """Also those from before users' vectors were apart: they were shared."""
    ada, eve = two_users(stack)
    with another(stack, share_vectors=True) as sharing:
        employ(sharing, provider)
        numbers(sharing, embed(sharing, "a", "b", user_id=ada))
        apart = numbers(stack, embed(stack, "a", "b", "c", user_id=ada))
        assert (apart["embedded"], apart["reused"]) == (1, 2)
        numbers(sharing, embed(sharing, "a", "b", "c", user_id=ada))
        assert first_words(provider.embedded) == ["a", "b", "c"]
    assert numbers(stack, embed(stack, "a", user_id=eve))["embedded"] == 1


def test_a_paid_answer_is_kept_whatever_characters_it_holds(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    """services/text.py: what PostgreSQL can't store is replaced, and the answer is kept."""
    provider.answer = lambda prompt: "a\x00b\ud800c"
    job = generate(stack)
    assert run(stack, job).state is JobState.SUCCEEDED
    result = stack.jobs.get(job.id).result
    assert result is not None
    assert result["text"] == "a\ufffdb\ufffdc"
    assert provider.calls == 1


def test_an_answer_on_record_is_there_to_read(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    """A worker killed between two commits must not leave a call that succeeded and no answer.

    The next worker would ask, and pay, for it again.
    """
    sql(stack, "CREATE TABLE unanswered (attempt_id bigint)")
    sql(
        stack,
        """
        CREATE FUNCTION check_answer() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO unanswered SELECT new.id FROM jobs
            WHERE jobs.id = new.job_id AND jobs.result IS NULL AND new.state = 'succeeded';
            RETURN NULL;
        END $$
        """,
    )
    sql(
        stack,
        "CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON attempts"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_answer()",
    )
    assert run(stack, generate(stack)).state is JobState.SUCCEEDED
    with stack.ledger.transaction() as unit:
        assert unit.session.scalar(text("SELECT count(*) FROM unanswered")) == 0


def test_jobs_with_the_same_passages_at_once_pay_once(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    job = embed(stack, "a", "b", "c", "d")
    same = embed(stack, "x", "d", "a", "b", source="b.txt")
    with ThreadPoolExecutor(2) as pool, Gate(stack) as gate:
        provider.on_call = lambda: gate() if provider.calls == 1 else None
        first = pool.submit(run, stack, job)
        gate.wait()
        second = pool.submit(run, stack, same)
        # What only it needs, it pays for meanwhile; for the rest it waits.
        wait_until(lambda: stack.jobs.get(same.id).current == 1, "its own passage")
        gate.open()
        assert first.result(30).state is JobState.SUCCEEDED
        assert second.result(30).state is JobState.SUCCEEDED
    assert sorted(first_words(provider.embedded)) == ["a", "b", "c", "d", "x"]
    results = [stack.jobs.get(each.id).result or {} for each in (job, same)]
    assert [(result["embedded"], result["reused"]) for result in results] == [(4, 0), (1, 3)]
    with stack.ledger.transaction() as unit:
        assert unit.reservations.get_many() == []


def test_reservations_of_a_job_that_has_ended_are_free(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    """It failed, was cancelled, or its worker died."""
    for number, end_ in enumerate(("fail", "cancel", "lose")):
        text = f"p{number}"
        job, same = embed(stack, text, source=f"{number}"), embed(stack, text, source=f"{number}b")
        stale = claimed(stack, job)
        with stack.ledger.transaction() as unit:
            digest = hashlib.sha256(padded(text).encode()).digest()
            assert unit.reservations.take(stale, [digest]) == {digest}
            assert unit.reservations.take(replace(stale, job_id=same.id), [digest]) == set()
        with stack.ledger.transaction() as unit:
            if end_ == "fail":
                unit.steps.fail(stale, "X", "x")
            elif end_ == "cancel":
                assert unit.jobs.cancel(job.id)
            else:
                unit.steps.retry_later(stale, 0.0, "WORKER_LOST", "x", counts=True)
        assert run(stack, same).state is JobState.SUCCEEDED
    with stack.ledger.transaction() as unit:
        unit.reservations.take(replace(stale, job_id=same.id), [digest])
        unit.reservations.forget_idle()
        assert unit.reservations.get_many() == []


def test_an_answer_with_absurd_usage_is_kept(stack: WorkerServices, provider: FakeProvider) -> None:
    provider.usage = 2**40
    job = generate(stack)
    assert run(stack, job).state is JobState.SUCCEEDED
    [attempt] = attempts(stack, job)
    assert (attempt.state, attempt.input_tokens, attempt.output_tokens) == ("succeeded", None, 3)
