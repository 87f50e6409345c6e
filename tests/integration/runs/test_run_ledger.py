"""What a run's shards write: counted once however often it is written, and safe from faults."""

from collections.abc import Sequence
from decimal import Decimal
from threading import Thread
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pytest
from sqlalchemy import text

from promptstack.config.names import VectorType
from promptstack.config.settings import load_settings
from promptstack.repositories.errors import LedgerUnavailable
from promptstack.repositories.models import JobKind
from promptstack.repositories.run_models import RunState
from promptstack.repositories.runs.answers import AnswerRepository
from promptstack.repositories.runs.runs import RunRepository
from promptstack.services.errors import InvalidInput, WrongState
from promptstack.services.limiter.terms import Need, Settlement
from promptstack.services.llm.answers import Capability, LimitReport, LimitState, Outcome
from promptstack.services.llm.errors import ServerBroke
from promptstack.services.runs.lifecycle import RunLifecycle
from promptstack.services.runs.service import BadInputs
from promptstack.services.runs.shards.call_pool import CallPool
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, HeldProvider, lost_commits
from tests.jobs import execute
from tests.processes import wait_until
from tests.runs import one, work


class Loud(FakeProvider):
    """Embeds, and some texts with numbers that two bytes don't hold."""

    name = "loud"

    def vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        found = super().vectors(texts)
        found[["loud" in text for text in texts]] *= 1e6
        return found


class Unsure(FakeProvider):
    """Breaks in the midst of each first try, so that nobody knows whether it was billed."""

    name = "unsure"

    async def called(self, texts: Sequence[str], failures: int) -> None:
        if failures == 0:
            raise ServerBroke("It broke.", status=500)


def test_a_commit_whose_answer_was_lost_is_counted_once(stack: WorkerServices) -> None:
    run = stack.runs.generate(
        [f"Say {n}." for n in range(60)],
        provider="demo",
        in_flight=7,
        max_tokens=50,
        max_cost_usd=Decimal(1),
    )
    (shard,) = one(stack, "SELECT id FROM jobs")
    with lost_commits(stack):
        execute(stack, shard)
    stack.run_lifecycle.run_once()
    done = work(stack, run.id)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 60, 0)
    calls, tokens, unsettled = one(
        stack,
        "SELECT count(*), sum(input_tokens + output_tokens), "
        "count(*) FILTER (WHERE billing = 'unknown') FROM attempts",
    )
    assert (calls, unsettled) == (60, 0)
    assert (done.calls, done.tokens) == (60, tokens)
    assert one(stack, "SELECT reserved_usd FROM runs") == (0,)
    assert one(stack, "SELECT count(*) FROM reservations") == (0,)


def test_a_call_that_may_have_been_billed_is_counted_once_too(stack: WorkerServices) -> None:
    Unsure().serve(stack)
    run = stack.runs.generate([f"Say {n}." for n in range(20)], provider="unsure", in_flight=7)
    (shard,) = one(stack, "SELECT id FROM jobs")
    with lost_commits(stack):
        execute(stack, shard)
    done = work(stack, run.id)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 20, 0)
    assert one(stack, "SELECT count(*) FROM attempts WHERE billing = 'unknown'") == (20,)
    assert done.calls == 40


def test_an_answer_that_comes_as_a_shard_is_cancelled_hides_no_interrupted_call(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldProvider().serve(stack)
    stack.runs.generate([f"Say {n}." for n in range(20)], provider="held", in_flight=6)
    (shard,) = one(stack, "SELECT id FROM jobs")
    end = CallPool.end

    def end_just_when_an_answer_comes(session: CallPool) -> None:
        stack.loop.run(held.let_go(1))
        wait_until(lambda: not session._events.empty(), "the second answer")
        end(session)

    monkeypatch.setattr(CallPool, "end", end_just_when_an_answer_comes)
    working = Thread(target=execute, args=(stack, shard))
    working.start()
    wait_until(lambda: len(held.held) == 6, "the calls to be made")
    with stack.ledger.transaction() as unit:
        unit.jobs.cancel(shard)  # as its run does
    stack.loop.run(held.let_go(0))
    working.join(30.0)
    assert not working.is_alive()
    with stack.ledger.transaction() as unit:
        known = unit.session.execute(
            text("SELECT state, billing, count(*) FROM attempts GROUP BY 1, 2 ORDER BY 1, 2")
        ).all()
    # Two were answered, two more left in their places, and one still waited for a place.
    assert known == [
        ("cancelled", "not_billed", 1),
        ("cancelled", "unknown", 6),
        ("succeeded", "billed", 2),
    ]
    assert one(stack, "SELECT count(*) FROM answers") == (2,)


def test_an_answer_that_cannot_be_stored_sinks_no_other(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AnswerRepository.store

    def fussy(self: AnswerRepository, provider: str, model: str, results: Any) -> None:
        if any("number 13." in result["text"] for result in results.values()):
            raise ValueError("No.")
        store(self, provider, model, results)

    monkeypatch.setattr(AnswerRepository, "store", fussy)
    prompts = [f"Say number {n}." for n in range(40)]
    done = work(stack, stack.runs.generate(prompts, provider="demo", max_retries=0).id)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 39, 1)
    (failed,) = stack.run_results.failed(done.id)
    assert failed.position == 14
    # What it cost is on record.
    assert one(stack, "SELECT count(*) FROM attempts WHERE billing = 'billed'") == (40,)


def test_numbers_that_two_bytes_do_not_hold_fail_their_item_alone(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    Loud().serve(stack)
    monkeypatch.setattr(stack.settings, "vector_type", VectorType.HALFVEC)
    texts = [f"text {n}" for n in range(20)]
    texts[7] = "a loud one"
    run = stack.runs.embed(texts, provider="loud", max_retries=0)
    done = work(stack, run.id)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 19, 1)
    (failed,) = stack.run_results.failed(done.id)
    assert (failed.position, failed.code) == (8, "BAD_PROVIDER_RESPONSE")


def test_what_an_end_left_half_done_is_done_later(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stack.runs.embed(["one", "two"])

    def dies(self: RunLifecycle, ended: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(RunLifecycle, "cancel_shards", dies)
        with pytest.raises(SystemExit):
            stack.runs.cancel(run.id)
    assert one(stack, "SELECT count(*) FROM jobs WHERE kind = 'shard' AND state = 'queued'") == (1,)
    stack.run_maintenance.run_once(0.0)
    states = "SELECT string_agg(kind || ' ' || state, ', ' ORDER BY kind DESC) FROM jobs"
    assert one(stack, states) == ("shard cancelled, finalization queued",)
    stack.run_maintenance.run_once(0.0)
    assert one(stack, "SELECT count(*) FROM jobs") == (2,)


def test_a_run_whose_maintenance_fails_keeps_no_job_from_being_published(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.jobs.enqueue_generation("Say it.")
    with stack.ledger.transaction() as unit:
        unit.session.execute(
            text(
                "UPDATE jobs SET created_at = now() - interval '1 minute', "
                "rung_at = NULL, rung_epoch = NULL"
            )
        )

    def fails(_: float) -> None:
        raise RuntimeError("Something is wrong with a run.")

    monkeypatch.setattr(stack.run_maintenance, "run_once", fails)
    with pytest.raises(RuntimeError):
        stack.reconciler.run_once()
    assert one(stack, "SELECT rung_at IS NOT NULL FROM jobs") == (True,)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({}, "needs max_tokens"),
        ({"max_tokens": 5, "provider_options": {"delay_seconds": 0}}, "provider options"),
        ({"max_tokens": 5, "provider": "openai", "model": "nobody-knows-it"}, "price"),
    ],
)
def test_a_limit_of_the_cost_that_could_not_be_held_is_refused(
    stack: WorkerServices, how: dict[str, Any], why: str
) -> None:
    given = {"provider": "demo", **how}
    with pytest.raises(InvalidInput, match=why):
        stack.runs.generate(["Say it."], max_cost_usd=Decimal(1), **given)
    assert one(stack, "SELECT count(*) FROM runs") == (0,)


@pytest.mark.parametrize("amount", ["NaN", "sNaN", "Infinity", "-Infinity", "-0.01", "1e8", "1e30"])
def test_a_limit_of_the_cost_that_is_no_amount_is_refused(
    stack: WorkerServices, amount: str
) -> None:
    with pytest.raises(InvalidInput, match="limit of the cost"):
        stack.runs.embed(["one"], provider="local", max_cost_usd=Decimal(amount))
    assert one(stack, "SELECT count(*) FROM runs") == (0,)
    run = stack.runs.embed(["one"], provider="local", max_cost_usd=Decimal(99999999))
    stack.runs.cancel(run.id)
    with pytest.raises(InvalidInput, match="limit of the cost"):
        stack.runs.retry(run.id, max_cost_usd=Decimal(amount))
    assert stack.runs.get(run.id).state == RunState.CANCELLED
    assert stack.runs.get(run.id).max_cost_usd == Decimal(99999999)


def test_the_least_time_is_at_the_limits_that_the_provider_has_told_of(
    environment: dict[str, str],
) -> None:
    with WorkerServices.open(load_settings(_env_file=None, openai_api_key="sk-test")) as stack:
        see_the_least_time(stack)


def see_the_least_time(stack: WorkerServices) -> None:
    def seconds() -> float | None:
        prompts = [f"Question {number}" for number in range(20)]
        preflight = stack.runs.prepare_generation(prompts, provider="openai", max_tokens=5)
        stack.runs.discard(preflight.run_id)
        return preflight.seconds

    assert seconds() is None
    service = stack.providers.get("openai")
    model = service.choose_model(Capability.GENERATION, None)
    permit = stack.loop.run(stack.limited_calls.enter(service, model, Need(1)))
    assert permit is not None
    report = LimitReport({"requests": LimitState(60, 59), "tokens": LimitState(10**9, 10**9 - 1)})
    stack.loop.run(stack.limiter.settle(permit, Settlement(Outcome.ANSWERED, report=report)))
    assert seconds() == pytest.approx(20.0)


def test_the_jobs_of_runs_are_listed_only_where_they_are_asked_for(stack: WorkerServices) -> None:
    single = stack.jobs.enqueue_generation("Say it.", provider="demo")
    stack.runs.generate(["Say this."], provider="demo")
    assert [job.id for job in stack.jobs.get_many()] == [single.id]
    assert len(stack.jobs.get_many(kind=JobKind.SHARD)) == 1


def test_search_returns_the_wanted_number_of_matches_although_texts_repeat(
    stack: WorkerServices,
) -> None:
    texts = [{"text": f"Text {n} of the sea.", "lang": "en" if n % 2 else "de"} for n in range(30)]
    for _ in range(6):
        work(stack, stack.runs.embed([*texts, *texts[:5]], provider="local").id)
    for where, most in (({"lang": "en"}, 15), ({"lang": "fr"}, 0), ({}, 30)):
        for limit in (5, 100):
            found = stack.search.search("the sea", limit=limit, provider="local", where=where)
            assert len({one.text for one in found}) == len(found) == min(limit, most)


def test_messages_cannot_be_embedded(stack: WorkerServices) -> None:
    messages = [{"role": "user", "content": "hello"}]
    items: list[dict[str, Any]] = [{"text": "fine"}, {"messages": messages}]
    with pytest.raises(BadInputs, match="2: It has messages"):
        stack.runs.embed(items, provider="local")
    done = work(stack, stack.runs.embed(items, provider="local", skip_bad=True).id)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 1, 1)


def test_a_view_that_cannot_be_shown_cuts_off_no_call(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stack.runs.generate([f"Say {n}." for n in range(20)], provider="demo", in_flight=4)

    def away(self: RunRepository, run_id: UUID) -> int:
        raise LedgerUnavailable("It is away for a moment.")

    monkeypatch.setattr(RunRepository, "count_workers", away)
    done = work(stack, run.id)
    assert (done.state, done.succeeded, done.calls) == (RunState.COMPLETED, 20, 20)
    assert one(stack, "SELECT count(*) FROM attempts") == (20,)


def test_what_fails_after_the_commit_is_not_stored_or_sent_again(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    HeldProvider().serve(stack)
    stack.runs.generate(["One.", "Two."], provider="held", in_flight=4, max_retries=0)
    (shard,) = one(stack, "SELECT id FROM jobs")
    sent: list[int] = []
    send = CallPool.make

    def send_and_fail(session: CallPool, calls: Any, seconds_left: float) -> None:
        sent.extend(call.attempt_id for call in calls)
        send(session, calls, seconds_left)
        if calls:
            raise RuntimeError("Something is wrong after the commit.")

    monkeypatch.setattr(CallPool, "make", send_and_fail)
    execute(stack, shard)
    assert len(sent) == len(set(sent))
    assert one(stack, "SELECT count(*) FROM attempts WHERE state = 'started'") == (0,)


def test_a_run_that_was_never_started_cannot_be_retried(stack: WorkerServices) -> None:
    preflight = stack.runs.prepare_generation(["Say it."], provider="demo")
    stack.runs.cancel(preflight.run_id)
    with pytest.raises(WrongState, match="never started"):
        stack.runs.retry(preflight.run_id)
    assert one(stack, "SELECT count(*) FROM jobs") == (0,)
