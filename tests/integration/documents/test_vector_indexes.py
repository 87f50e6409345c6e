"""The indexes of vectors, built and dropped while others are at work."""

import hashlib
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sqlalchemy import create_engine, text

from promptstack.repositories.content.collections import NOBODYS
from promptstack.repositories.content.passages import SearchScope
from promptstack.repositories.content.vector_tables import create_index, index_name, partition_of
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.errors import IndexNotBuilt
from promptstack.repositories.run_models import RunState
from promptstack.repositories.vector_indexes import VectorIndexes
from promptstack.tasks.worker_services import WorkerServices
from tests.processes import Process, wait_until
from tests.runs import in_ledger, work

VALID = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
BUILDING = text("SELECT count(*) FROM pg_stat_progress_create_index")


def make_model(stack: WorkerServices, vectors: int) -> EmbeddingModel:
    with stack.ledger.transaction() as unit:
        model = unit.embeddings.register_model("openai", "any", 256, with_index=False)
        rows = np.random.default_rng(1).standard_normal((vectors, 256), dtype=np.float32)
        hashes = [hashlib.sha256(f"{number}".encode()).digest() for number in range(vectors)]
        unit.embeddings.store(model, hashes, rows)
    return model


def has_valid_index(stack: WorkerServices, model: EmbeddingModel) -> bool:
    with stack.ledger.transaction() as unit:
        return bool(unit.session.scalar(VALID, {"name": index_name(model)}))


def test_who_meets_a_build_under_way_does_not_stand_in_its_way(stack: WorkerServices) -> None:
    model = make_model(stack, 6_000)
    indexes = VectorIndexes(stack.ledger)

    def is_building() -> bool:
        with stack.ledger.transaction() as unit:
            return bool(unit.session.scalar(BUILDING))

    with ThreadPoolExecutor(1) as other:
        building = other.submit(indexes.build, model)
        wait_until(is_building, "the build")
        assert not indexes.build(model)
        assert building.result(60.0)
    assert indexes.build(model)
    assert has_valid_index(stack, model)


def test_a_build_that_was_broken_off_is_made_anew(stack: WorkerServices) -> None:
    model = make_model(stack, 50)
    indexes = VectorIndexes(stack.ledger)
    assert indexes.build(model)
    with stack.ledger.transaction() as unit:
        unit.session.execute(
            text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(:name)"),
            {"name": index_name(model)},
        )
    assert indexes.build(model)
    assert has_valid_index(stack, model)


def test_a_dropped_index_is_gone(stack: WorkerServices) -> None:
    model = make_model(stack, 50)
    indexes = VectorIndexes(stack.ledger)
    assert indexes.build(model)
    with stack.ledger.transaction() as unit:
        assert indexes.drop(unit, model)
    with stack.ledger.transaction() as unit:
        assert unit.session.scalar(VALID, {"name": index_name(model)}) is None


def test_a_worker_that_is_told_to_stop_hands_a_build_back_at_once(
    stack: WorkerServices, start_worker: Callable[..., Process]
) -> None:
    work(stack, stack.runs.embed(["one", "two"], provider="local").id)
    with stack.ledger.transaction() as unit:
        model = unit.embeddings.find_model("local", "wordllama-256")
    assert model is not None
    run = stack.runs.embed(["three", "four"], provider="local")
    assert not has_valid_index(stack, model)
    # A build waits for whoever writes to the table, as long as that takes.
    engine = create_engine(stack.database_url)
    with engine.connect() as writer:
        writer.execute(text(f"LOCK TABLE {partition_of(model)} IN ROW EXCLUSIVE MODE"))
        worker = start_worker(SHUTDOWN_GRACE_SECONDS="1")
        is_building = "SELECT count(*) FROM pg_stat_progress_create_index"
        wait_until(lambda: in_ledger(stack, is_building), "the build")
        worker.send(signal.SIGTERM)
        assert worker.wait(15.0) == 0
        states = "SELECT state FROM jobs WHERE kind = 'finalization' ORDER BY id DESC LIMIT 1"
        assert in_ledger(stack, states) == "queued"
    engine.dispose()
    done = work(stack, run.id)
    assert (done.state, done.error_code) == (RunState.COMPLETED, None)
    assert has_valid_index(stack, model)


def test_a_build_that_fails_leaves_nothing_behind(stack: WorkerServices) -> None:
    model = make_model(stack, 50)
    with stack.ledger.transaction() as unit:
        unit.session.execute(
            text(f"UPDATE {partition_of(model)} SET vector = '[1,2]' WHERE ctid = '(0,1)'")
        )
    with pytest.raises(IndexNotBuilt, match="expected 256 dimensions"):
        VectorIndexes(stack.ledger).build(model)
    with stack.ledger.transaction() as unit:
        assert unit.session.scalar(VALID, {"name": index_name(model)}) is None


def test_an_index_is_not_dropped_while_it_is_built(stack: WorkerServices) -> None:
    model = make_model(stack, 50)
    indexes = VectorIndexes(stack.ledger)
    assert indexes.build(model)
    with stack.ledger.transaction() as builder:
        assert builder.try_lock(index_name(model))
        with stack.ledger.transaction() as unit:
            assert not indexes.drop(unit, model)
        assert not indexes.build(model)
    assert has_valid_index(stack, model)


def test_an_index_that_a_search_uses_is_kept_and_the_transaction_goes_on(
    stack: WorkerServices,
) -> None:
    model = make_model(stack, 50)
    indexes = VectorIndexes(stack.ledger)
    assert indexes.build(model)
    with stack.ledger.transaction() as searching:
        searching.passages.search(
            model, np.ones(256, np.float32), 1, SearchScope((NOBODYS,)), compared=0
        )
        with stack.ledger.transaction() as unit:
            assert not indexes.drop(unit, model)
            assert unit.embeddings.count(model) == 50
    assert has_valid_index(stack, model)


def test_many_vectors_are_estimated_and_few_are_counted(stack: WorkerServices) -> None:
    model = make_model(stack, 50)
    for known, estimated in ((-1, 50), (20_000, 50), (3_000_000, 3_000_000)):
        with stack.ledger.transaction() as unit:
            unit.session.execute(
                text("UPDATE pg_class SET reltuples = :known WHERE relname = :name"),
                {"known": known, "name": partition_of(model)},
            )
            assert unit.embeddings.estimate(model) == estimated


def test_a_build_whose_process_was_killed_is_not_begun_a_second_time(stack: WorkerServices) -> None:
    """PostgreSQL goes on with the statement of a client that is gone, and holds no lock of it."""
    model = make_model(stack, 50)
    indexes = VectorIndexes(stack.ledger)
    engine = create_engine(stack.database_url, isolation_level="AUTOCOMMIT")

    def build_without_a_lock() -> None:
        with engine.connect() as connection:
            connection.execute(text(create_index(model, "CONCURRENTLY")))

    writers = create_engine(stack.database_url)
    with ThreadPoolExecutor(1) as other, writers.connect() as writer:
        writer.execute(text(f"LOCK TABLE {partition_of(model)} IN ROW EXCLUSIVE MODE"))
        building = other.submit(build_without_a_lock)
        wait_until(lambda: in_ledger(stack, str(BUILDING)), "the build")
        assert not indexes.build(model)
        writer.rollback()
        building.result(60.0)
    assert indexes.build(model)
    assert has_valid_index(stack, model)
    engine.dispose()
    writers.dispose()
