"""The indexes of vectors, built and dropped while others are at work."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from sqlalchemy import text

from repositories.embeddings import index_name
from repositories.models import EmbeddingModel
from repositories.vector_indexes import VectorIndexes
from tasks.composition import PromptStack
from tests.processes import wait_until

VALID = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
BUILDING = text("SELECT count(*) FROM pg_stat_progress_create_index")


def make_model(stack: PromptStack, vectors: int) -> EmbeddingModel:
    with stack.ledger.transaction() as unit:
        model = unit.embeddings.register_model("openai", "any", 256, with_index=False)
        rows = np.random.default_rng(1).standard_normal((vectors, 256), dtype=np.float32)
        hashes = [hashlib.sha256(f"{number}".encode()).digest() for number in range(vectors)]
        unit.embeddings.store(model, hashes, rows)
    return model


def has_valid_index(stack: PromptStack, model: EmbeddingModel) -> bool:
    with stack.ledger.transaction() as unit:
        return bool(unit.session.scalar(VALID, {"name": index_name(model)}))


def test_who_meets_a_build_under_way_does_not_stand_in_its_way(stack: PromptStack) -> None:
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


def test_a_build_that_was_broken_off_is_made_anew(stack: PromptStack) -> None:
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


def test_a_dropped_index_is_gone(stack: PromptStack) -> None:
    model = make_model(stack, 50)
    indexes = VectorIndexes(stack.ledger)
    assert indexes.build(model)
    assert indexes.drop(model)
    with stack.ledger.transaction() as unit:
        assert unit.session.scalar(VALID, {"name": index_name(model)}) is None
