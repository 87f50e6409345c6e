"""Runs through real processes: the simulator over the real wire, the ledger, files out."""

import json
import signal
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from promptstack.repositories.run_models import RunState
from promptstack.services.export.results import export
from promptstack.services.runs.service import BadInputs
from promptstack.services.runs.shards.slots import RunSlots
from promptstack.services.runs.views import RunView
from promptstack.services.sources.inputs import Reading
from promptstack.simulator.process import SimulatorProcess
from promptstack.tasks.worker_services import WorkerServices
from tests.processes import Process, wait_until
from tests.runs import ended, failures, has_done, in_ledger, prompts

MODEL = "text-embedding-3-small"
DIMENSIONS = 1_536


def test_embeddings_come_out_in_order_and_the_same_run_again_bills_nothing(
    runs: WorkerServices,
    simulator: SimulatorProcess,
    start_worker: Callable[..., Process],
    tmp_path: Path,
) -> None:
    start_worker()
    # Every text twice: what comes again is paid for once.
    texts = [f"text {n % 1_500}" for n in range(3_000)]
    first = ended(runs, runs.runs.embed(texts, name="first"))
    assert (first.state, first.succeeded, first.failed) == (RunState.COMPLETED, 3_000, 0)
    assert first.reused == 1_500
    assert simulator.stats()["billed"] == 1_500
    assert simulator.ledger(times=2) == {}
    path = tmp_path / "out.npy"
    summary = export(
        path, runs.run_results.produced(first.id), runs.run_results.failed(first.id), count=3_000
    )
    vectors = np.load(path)
    assert vectors.shape == (3_000, DIMENSIONS)
    assert summary.ids_path is not None
    ids = [json.loads(line)["custom_id"] for line in summary.ids_path.read_text().splitlines()]
    assert ids == [str(n) for n in range(1, 3_001)]
    assert (vectors[:1_500] == vectors[1_500:]).all()
    assert len(np.unique(vectors[:1_500], axis=0)) == 1_500

    calls = simulator.stats()["requests"]
    again = ended(runs, runs.runs.embed(texts, name="again"))
    assert (again.state, again.succeeded, again.reused) == (RunState.COMPLETED, 3_000, 3_000)
    assert (again.calls, again.cost_usd) == (0, Decimal(0))
    assert simulator.stats()["requests"] == calls


def test_the_index_is_there_in_the_end_and_search_finds_items_by_their_metadata(
    runs: WorkerServices, start_worker: Callable[..., Process]
) -> None:
    start_worker()
    items = [
        {"custom_id": f"{n}", "text": f"passage {n}", "lang": "en" if n % 10 else "fr"}
        for n in range(200)
    ]
    run = ended(runs, runs.runs.embed(items))
    assert run.state is RunState.COMPLETED
    indexed = "SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%hnsw%' AND tablename = :t"
    with runs.ledger.transaction() as unit:
        model = unit.embeddings.find_model("openai", MODEL)
        assert model is not None
        table = {"t": f"embeddings_{model.id}"}
        assert unit.session.scalar(text(indexed), table) == 1
    found = runs.search.search("passage 30", limit=3)
    assert found[0].text == "passage 30"
    french = runs.search.search("passage 31", limit=5, where={"lang": "fr"})
    assert len(french) == 5
    assert {match.attributes["lang"] for match in french} == {"fr"}
    by_vector = next(iter(runs.run_results.produced(run.id))).vector
    assert by_vector is not None
    nearest = runs.search.search_vector(by_vector, provider="openai", model=MODEL, limit=1)
    assert nearest[0].text == "passage 0"


def test_bad_inputs_stop_a_run_before_anything_is_paid_or_end_in_its_errors(
    runs: WorkerServices,
    simulator: SimulatorProcess,
    start_worker: Callable[..., Process],
    tmp_path: Path,
) -> None:
    start_worker()
    lines = [json.dumps({"custom_id": f"id-{n}", "text": f"text {n}"}) for n in range(396)]
    lines[10:10] = [
        "not json",
        '{"custom_id": "empty", "text": ""}',
        '{"custom_id": "n", "text": 7}',
    ]
    lines.append('{"custom_id": "id-3", "text": "comes again"}')
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(BadInputs):
        runs.runs.embed(path)
    assert simulator.stats()["requests"] == 0
    assert in_ledger(runs, "SELECT count(*) FROM items") == 0
    assert in_ledger(runs, "SELECT count(*) FROM runs") == 0
    run = ended(runs, runs.runs.embed(path, skip_bad=True))
    assert (run.state, run.succeeded, run.failed) == (RunState.COMPLETED, 396, 4)
    found = {one.position: one.code for one in runs.run_results.failed(run.id)}
    assert found == {11: "BAD_JSON", 12: "EMPTY_TEXT", 13: "WRONG_TYPE", 400: "DUPLICATE_ID"}
    assert all(one.error for one in runs.run_results.failed(run.id))


def test_an_item_that_is_refused_sinks_neither_its_call_nor_its_run(
    runs: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    start_worker()
    # The longest that is sent at all; the simulator refuses it, and with it all that goes along.
    items = [f"text {n}" for n in range(50)]
    items[17] = "word " * 8_000
    run = ended(runs, runs.runs.embed(items))
    assert (run.state, run.succeeded, run.failed) == (RunState.COMPLETED, 49, 1)
    assert failures(runs, run) == {"18": "CONTEXT_TOO_LONG"}
    assert simulator.ledger(times=2) == {}


def test_what_fails_for_a_while_is_tried_again_and_what_fails_for_good_can_be_retried(
    runs: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    start_worker()
    none: dict[str, Any] = {"kind": "none"}
    busy: dict[str, Any] = {"kind": "status", "status": 503}
    simulator.control(*[none, busy] * 5)
    run = ended(runs, runs.runs.generate(prompts(100), max_tokens=16, in_flight=8))
    assert (run.state, run.succeeded, run.failed) == (RunState.COMPLETED, 100, 0)
    assert run.calls == 105
    assert simulator.stats()["billed"] == 100
    simulator.control({"kind": "status", "status": 400, "code": "bad"})
    one = ended(runs, runs.runs.generate(["only this"], max_tokens=16))
    assert (one.state, one.failed) == (RunState.COMPLETED, 1)
    retried = ended(runs, runs.runs.retry(one.id))
    assert (retried.state, retried.succeeded, retried.failed) == (RunState.COMPLETED, 1, 0)


def test_spent_quota_ends_a_run_and_a_retry_pays_only_for_the_rest(
    runs: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    start_worker()
    quota = {"kind": "status", "status": 429, "code": "insufficient_quota"}
    simulator.control(*[{"kind": "none"}] * 20, *[quota] * 8)
    failed = ended(runs, runs.runs.generate(prompts(60), max_tokens=16, in_flight=4))
    assert (failed.state, failed.error_code) == (RunState.FAILED, "QUOTA_EXHAUSTED")
    assert 0 < failed.succeeded < 60
    simulator.control()
    simulator.reset()

    def retried() -> bool:
        # The account counts as spent for a while.
        run = runs.runs.get(failed.id)
        if run.state is RunState.FAILED:
            runs.runs.retry(run.id)
        return runs.runs.get(failed.id).state is RunState.COMPLETED

    wait_until(retried, "the run, retried until the account is asked again", 180.0)
    done = runs.runs.get(failed.id)
    assert (done.succeeded, done.failed) == (60, 0)
    assert simulator.stats()["billed"] == 60 - failed.succeeded


def test_a_run_never_costs_more_than_its_limit(
    runs: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    start_worker()
    limit = Decimal("0.002")
    run = runs.runs.generate(prompts(300), max_tokens=16, in_flight=16, max_cost_usd=limit)
    run = ended(runs, run)
    assert (run.state, run.error_code) == (RunState.FAILED, "BUDGET_REACHED")
    assert 0 < run.succeeded < 300
    assert run.cost_usd is not None
    assert Decimal(0) < run.cost_usd <= limit
    assert in_ledger(runs, "SELECT sum(cost_usd) FROM attempts") == run.cost_usd
    run = ended(runs, _retried(runs, run, Decimal(1)))
    assert (run.state, run.succeeded) == (RunState.COMPLETED, 300)
    assert simulator.ledger(times=2) == {}


def _retried(stack: WorkerServices, run: RunView, limit: Decimal) -> RunView:
    return stack.runs.retry(run.id, max_cost_usd=limit)


def test_a_cancelled_run_keeps_what_it_has_and_asks_no_more(
    runs: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    start_worker()
    simulator.set_latency(0.2)
    run = runs.runs.generate(prompts(500), max_tokens=16, in_flight=8)
    wait_until(lambda: runs.runs.get(run.id).succeeded >= 20, "the first answers")
    runs.runs.cancel(run.id)
    under_way = "SELECT count(*) FROM attempts WHERE state = 'started'"
    wait_until(lambda: in_ledger(runs, under_way) == 0, "the end of all calls")
    asked = simulator.stats()["requests"]
    stopped = runs.runs.get(run.id)
    assert (stopped.state, stopped.succeeded) == (RunState.CANCELLED, asked)
    kept = list(runs.run_results.produced(run.id))
    assert len(kept) == stopped.succeeded >= 20
    assert asked < 500
    assert simulator.stats()["requests"] == asked


def test_templates_and_schemas_make_answers_that_are_checked(
    runs: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    start_worker()
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    reading = Reading(template="Where is {what}?")
    run = ended(
        runs,
        runs.runs.generate(
            [{"id": "a", "what": "the tower"}, {"id": "b", "what": "the bridge"}],
            json_schema=schema,
            reading=reading,
        ),
    )
    assert (run.state, run.succeeded) == (RunState.COMPLETED, 2)
    produced = list(runs.run_results.produced(run.id, with_input=True))
    assert [one.text for one in produced] == ["Where is the tower?", "Where is the bridge?"]
    answers: list[Any] = [one.answer for one in produced]
    assert all(isinstance(answer["json"]["city"], str) for answer in answers)
    # The simulator makes every city a string; what wants a long one is not served.
    strict = {**schema, "properties": {"city": {"type": "string", "minLength": 10_000}}}
    unfit = ended(runs, runs.runs.generate(["Say it."], json_schema=strict))
    assert (unfit.state, unfit.succeeded, unfit.failed) == (RunState.COMPLETED, 0, 1)
    assert failures(runs, unfit) == {"1": "ANSWER_MISMATCH"}
    assert unfit.cost_usd
    assert unfit.cost_usd > 0


def test_progress_in_redis_is_that_of_the_ledger_and_comes_back_after_a_flush(
    runs: WorkerServices, start_worker: Callable[..., Process]
) -> None:
    start_worker()
    run = ended(runs, runs.runs.generate(prompts(40), max_tokens=16))

    def is_shown_ended() -> bool:
        shown = runs.run_progress.read(run.id)
        return shown is not None and shown.state is RunState.COMPLETED

    # It is told to Redis after the commit that has ended it.
    wait_until(is_shown_ended, "the run's end in its progress", 15.0)
    shown = runs.run_progress.read(run.id)
    assert shown is not None
    assert (shown.succeeded, shown.calls) == (40, run.calls)
    runs.redis.flushdb()
    again = runs.run_progress.read(run.id)
    assert again is not None
    assert again.version == shown.version
    assert (again.succeeded, again.tokens) == (shown.succeeded, shown.tokens)
    assert shown.tokens == in_ledger(runs, "SELECT sum(input_tokens + output_tokens) FROM attempts")


def test_a_run_outlives_three_kills_and_pays_twice_only_for_what_was_in_flight(
    runs: WorkerServices,
    simulator: SimulatorProcess,
    start_worker: Callable[..., Process],
    tmp_path: Path,
) -> None:
    in_flight = 16
    simulator.set_latency(0.1)
    worker = start_worker()
    run = runs.runs.generate(prompts(2_000), max_tokens=16, in_flight=in_flight)
    for kill in range(1, 4):
        wait_until(partial(has_done, runs, run, kill * 300), f"item {kill * 300}")
        worker.kill()
        worker = start_worker()
    done = ended(runs, run, 120.0)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 2_000, 0)
    # What a worker has asked for, or has in hand and not stored yet: see `RunSlots`.
    twice = len(simulator.ledger(times=2))
    assert twice <= in_ledger(runs, "SELECT count(*) FROM attempts WHERE state = 'lost'")
    assert twice <= 3 * RunSlots(in_flight).total
    path = tmp_path / "out.jsonl"
    export(path, runs.run_results.produced(run.id), runs.run_results.failed(run.id), count=2_000)
    ids = [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]
    assert ids == [f"id-{n}" for n in range(2_000)]


def test_a_worker_that_is_told_to_stop_hands_its_shards_on_and_nothing_is_paid_twice(
    runs: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    simulator.set_latency(0.1)
    worker = start_worker()
    run = runs.runs.generate(prompts(1_500), max_tokens=16, in_flight=16)
    wait_until(lambda: runs.runs.get(run.id).succeeded >= 200, "the first answers")
    worker.send(signal.SIGTERM)
    assert worker.wait(30.0) == 0
    left = runs.runs.get(run.id)
    assert left.state is RunState.RUNNING
    start_worker()
    done = ended(runs, run)
    assert (done.state, done.succeeded) == (RunState.COMPLETED, 1_500)
    assert simulator.ledger(times=2) == {}


def test_a_small_run_is_not_behind_a_large_one(
    runs: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    simulator.set_latency(0.05)
    start_worker(WORKER_SHARDS="2")
    large = runs.runs.generate(prompts(5_000), max_tokens=16, in_flight=4)
    small = runs.runs.generate([f"a small one {n}" for n in range(20)], max_tokens=16, in_flight=4)
    done = ended(runs, small)
    assert done.state is RunState.COMPLETED
    assert not runs.runs.get(large.id).state.is_final
    runs.runs.cancel(large.id)
