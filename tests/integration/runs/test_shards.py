"""What a worker makes of a shard where something is in its way."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from threading import Thread
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from promptstack.repositories.errors import LedgerRefused
from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.models import JobState
from promptstack.repositories.run_models import RunState
from promptstack.repositories.runs.answers import AnswerRepository
from promptstack.services.limiter.errors import LimiterWait
from promptstack.services.llm.errors import InvalidProviderRequest, Overloaded, ProviderTimeout
from promptstack.services.llm.packing import EmbeddingLimits
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, HeldProvider, lost_commits
from tests.jobs import execute
from tests.processes import wait_until
from tests.runs import failures, one, work


class Pairs(FakeProvider):
    """Embeds two texts at once; what a text says becomes of its call."""

    name = "pairs"
    limits = EmbeddingLimits(items=2, bytes=10_000)

    async def called(self, texts: Sequence[str], failures: int) -> None:
        for text_ in texts:
            if text_.startswith("bad"):
                raise InvalidProviderRequest("It is refused.")
            if text_.startswith("slow") and self.asked[text_] == 1:
                raise Overloaded("Come again.", status=503, retry_after=3.2)
            if text_.startswith("timeout"):
                raise ProviderTimeout("It did not answer.", retry_after=0.05)
            if text_.startswith("wait") and self.asked[text_] == 1:
                raise LimiterWait("There is no room.", retry_after=0.05)


@pytest.fixture(autouse=True)
def pairs(stack: WorkerServices) -> Pairs:
    return Pairs().serve(stack)


@pytest.fixture(autouse=True)
def held(stack: WorkerServices) -> HeldProvider:
    return HeldProvider().serve(stack)


def test_an_item_that_fails_while_another_waits_for_its_turn_fails_alone(
    stack: WorkerServices,
) -> None:
    run = stack.runs.embed(["slow", "fine", "bad", "good"], provider="pairs", max_retries=5)
    done = work(stack, run.id)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 3, 1)
    assert failures(stack, done) == {"3": "INVALID_PROVIDER_REQUEST"}


def test_tries_are_counted_on_where_a_shard_is_taken_up_again(
    stack: WorkerServices,
    pairs: Pairs,
) -> None:
    stack.shard_tools = replace(stack.shard_tools, patience_seconds=0.0)
    run = stack.runs.embed(["timeout"], provider="pairs", max_retries=3)
    done = work(stack, run.id)
    assert (done.state, done.failed) == (RunState.COMPLETED, 1)
    assert one(stack, "SELECT max(attempt) FROM jobs WHERE kind = 'shard'") == (4,)
    assert pairs.asked["timeout"] == 4
    # To try it again is to begin anew.
    stack.runs.retry(run.id)
    work(stack, run.id)
    assert pairs.asked["timeout"] == 8


def test_a_shard_that_waits_to_try_again_keeps_no_other_from_its_turn(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack.settings, "shard_bytes", len("slow" + "fine"))
    monkeypatch.setattr(stack.settings, "worker_shards", 1)
    stack.runs.embed(["slow", "fine", "good", "well"], provider="pairs")
    (shard,) = one(stack, "SELECT id FROM jobs WHERE kind = 'shard'")
    execute(stack, shard)
    waits = "SELECT error_code FROM jobs WHERE not_before > now()"
    assert one(stack, waits) == ("TRIED_LATER",)
    stack.run_lifecycle.run_once()
    assert one(stack, "SELECT count(*) FROM jobs WHERE kind = 'shard'") == (2,)


def test_no_more_shards_are_queued_than_workers_have_slots_for(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack.settings, "shard_bytes", 1)
    monkeypatch.setattr(stack.settings, "worker_shards", 3)
    stack.runs.embed([f"text {n}" for n in range(20)], provider="pairs")
    for _ in range(3):
        stack.run_lifecycle.run_once()
    assert one(stack, "SELECT count(*) FROM jobs") == (3,)


def test_a_stopping_worker_finishes_its_calls_and_hands_the_rest_back(
    stack: WorkerServices,
    held: HeldProvider,
) -> None:
    run = stack.runs.generate([f"Say {n}." for n in range(20)], provider="held", in_flight=4)
    (shard,) = one(stack, "SELECT id FROM jobs")
    working = Thread(target=execute, args=(stack, shard))
    working.start()
    wait_until(lambda: len(held.held) == 4, "the calls to be made")
    stack.active_jobs.let_none_begin()
    answered = 0

    def has_ended() -> bool:
        nonlocal answered
        # What was recorded just before may leave yet.
        while answered < len(held.held):
            stack.loop.run(held.let_go(answered))
            answered += 1
        return not working.is_alive()

    wait_until(has_ended, "the end of the calls under way")
    assert stack.jobs.get(shard).state is JobState.QUEUED
    succeeded = "SELECT count(*) FROM attempts WHERE state = 'succeeded'"
    assert one(stack, succeeded) == (answered,)
    left = "SELECT count(*) FROM attempts WHERE state <> 'succeeded' AND billing <> 'not_billed'"
    assert one(stack, left) == (0,)
    assert stack.runs.get(run.id).succeeded == answered < 20


def test_money_reserved_by_a_commit_without_an_answer_is_not_counted_twice(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:

    def dollar_a_token(*_: Any, input_tokens: int, output_tokens: int, **__: Any) -> Decimal:
        return Decimal(input_tokens + output_tokens)

    monkeypatch.setattr(stack.prices, "cost", dollar_a_token)
    # Enough for one such call, and not for two.
    run = stack.runs.generate(
        ["Say it."], provider="demo", max_tokens=500, max_cost_usd=Decimal(800)
    )
    (shard,) = one(stack, "SELECT id FROM jobs")
    with lost_commits(stack):
        execute(stack, shard)
    done = work(stack, run.id)
    assert (done.state, done.succeeded, done.error_code) == (RunState.COMPLETED, 1, None)
    assert one(stack, "SELECT reserved_usd FROM runs") == (0,)


def test_an_answer_that_the_ledger_refuses_sinks_no_other(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AnswerRepository.store

    def fussy(self: AnswerRepository, provider: str, model: str, results: Any) -> None:
        if any("number 13." in result["text"] for result in results.values()):
            raise LedgerRefused("It won't have it.")
        store(self, provider, model, results)

    monkeypatch.setattr(AnswerRepository, "store", fussy)
    prompts = [f"Say number {n}." for n in range(40)]
    done = work(stack, stack.runs.generate(prompts, provider="demo", max_retries=0).id)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 39, 1)
    assert one(stack, "SELECT count(*) FROM attempts WHERE billing = 'billed'") == (40,)


def test_reservations_released_in_opposite_order_do_not_deadlock(
    stack: WorkerServices,
) -> None:
    mine, theirs = (claim_of(stack, word) for word in ("mine", "theirs"))
    x, y = b"x" * 32, b"y" * 32
    with stack.ledger.transaction() as unit:
        assert unit.reservations.take(mine, [x]) == {x}
        assert unit.reservations.take(theirs, [y]) == {y}
    with stack.ledger.transaction() as first, stack.ledger.transaction() as second:
        for unit in (first, second):
            unit.limit_statements(5.0)
        assert first.reservations.take(mine, [y]) == set()
        assert second.reservations.take(theirs, [x]) == set()
        first.reservations.release(mine, [x])
        second.reservations.release(theirs, [y])
        second.reservations.forget_idle()


def test_an_attempt_that_was_taken_over_gives_nothing_up(stack: WorkerServices) -> None:
    old = claim_of(stack, "mine")
    content = b"x" * 32
    with stack.ledger.transaction() as unit:
        unit.reservations.take(old, [content])
        unit.steps.release(old.job_id, old.attempt)
        new = unit.steps.claim(old.job_id, old.worker_id)
        assert new is not None
        assert unit.reservations.take(new, [content]) == {content}
        unit.reservations.release(old, [content])
        assert len(unit.reservations.get_many()) == 1


def claim_of(stack: WorkerServices, word: str) -> Claim:
    """A job in this process's hands."""
    job = stack.jobs.enqueue_generation(f"Say {word}.", provider="demo")
    with stack.ledger.transaction() as unit:
        claim = unit.steps.claim(job.id, stack.worker_id)
        assert claim is not None
        return claim


def test_a_stored_vector_is_found_while_another_job_still_reserves_it(
    stack: WorkerServices,
    pairs: Pairs,
) -> None:
    other = claim_of(stack, "other")
    run = stack.runs.embed(["one", "two"], provider="pairs")
    with stack.ledger.transaction() as unit:
        hashes = list(
            map(bytes, unit.session.scalars(text("SELECT content_hash FROM items ORDER BY 1")))
        )
        unit.session.execute(
            text(
                "INSERT INTO reservations (provider, model, content_hash, job_id, attempt) "
                "SELECT 'pairs', 'pairs-1', content_hash, :job, :attempt FROM items"
            ),
            {"job": other.job_id, "attempt": other.attempt},
        )
    (shard,) = one(stack, "SELECT id FROM jobs WHERE kind = 'shard'")
    working = Thread(target=execute, args=(stack, shard))
    working.start()
    with stack.ledger.transaction() as unit:
        model = unit.embeddings.register_model("pairs", "pairs-1", 3)
        unit.embeddings.store(model, hashes, np.ones((2, 3), dtype=np.float32))
    working.join(30.0)
    assert not working.is_alive()
    done = work(stack, run.id)
    assert (done.state, done.succeeded, done.reused) == (RunState.COMPLETED, 2, 2)
    assert pairs.asked.total() == 0
