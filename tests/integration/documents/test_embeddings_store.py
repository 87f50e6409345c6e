"""Vectors in PostgreSQL: stored bit for bit, found in the right order, by the index."""

import hashlib
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from sqlalchemy import event, select, text

from promptstack.repositories.content.collections import NOBODYS
from promptstack.repositories.content.documents import NewDocument, Passage
from promptstack.repositories.content.passages import Match, SearchScope
from promptstack.repositories.content.vector_tables import TABLES
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.tasks.composition import PromptStack
from tests.processes import PATIENCE

Vectors = npt.NDArray[np.float32]

EVERYTHING = SearchScope((NOBODYS,))
DIMENSIONS = [3, 256, 1_536, 3_072, 5_000]


@pytest.fixture
def ledger(stack: PromptStack) -> Ledger:
    return stack.ledger


def hash_of(passage: str) -> bytes:
    return hashlib.sha256(passage.encode()).digest()


def hashes(count: int, prefix: str = "") -> list[bytes]:
    return [hash_of(f"{prefix}{number}") for number in range(count)]


def random_vectors(count: int, dimensions: int, seed: int = 1) -> Vectors:
    made = np.random.default_rng(seed).standard_normal((count, dimensions))
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), dtype=np.float32)


def add_document(unit: UnitOfWork, source: str, passages: Sequence[str]) -> None:
    new = NewDocument(None, NOBODYS, source, " ".join(passages), hash_of(source))
    document_id = unit.documents.put_many([new])[new.key]
    document = unit.documents.lock(document_id)
    assert document is not None
    chunks = [
        Passage(position, position, passage, hash_of(passage))
        for position, passage in enumerate(passages)
    ]
    unit.documents.replace_chunks(document, chunks, b"fingerprint")


def stored(unit: UnitOfWork, model: EmbeddingModel) -> dict[bytes, Vectors]:
    rows = unit.session.execute(
        select(TABLES["vector"].c.content_hash, TABLES["vector"].c.vector).where(
            TABLES["vector"].c.model_id == model.id
        )
    )
    return {bytes(row[0]): np.asarray(row[1], dtype=np.float32) for row in rows}


def same_bits(one: Vectors, other: Vectors) -> bool:
    return one.tobytes() == other.tobytes()


def cosines(vectors: Vectors, question: Vectors) -> npt.NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    asked = question.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(asked)
    return np.asarray(wide @ asked / lengths, dtype=np.float64)


@contextmanager
def recorded(ledger: Ledger) -> Iterator[list[tuple[str, Any]]]:
    """The statements, with their parameters, that reach the database."""
    seen: list[tuple[str, Any]] = []

    def record(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        seen.append((statement, parameters))

    event.listen(ledger.engine, "before_cursor_execute", record)
    try:
        yield seen
    finally:
        event.remove(ledger.engine, "before_cursor_execute", record)


# Storing


@effort(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_finite_float_comes_back_bit_for_bit(ledger: Ledger, rows: list[list[float]]) -> None:
    vectors = np.array(rows, dtype=np.float32)
    with ledger.transaction() as unit:
        # Over the width that has an index: pgvector can't take the norm of every vector.
        wide = np.zeros((len(rows), 4_001), dtype=np.float32)
        wide[:, : vectors.shape[1]] = vectors
        model = unit.embeddings.register_model("fake", "wide", 4_001)
        unit.embeddings.store(model, hashes(len(rows)), wide)
        found = stored(unit, model)
        for name, vector in zip(hashes(len(rows)), wide, strict=True):
            assert same_bits(found[name], vector)
        unit.session.rollback()


@pytest.mark.parametrize("dimensions", DIMENSIONS)
def test_vectors_of_every_width_are_stored_and_searched_in_order(
    ledger: Ledger, dimensions: int
) -> None:
    passages = [f"passage {number}" for number in range(30)]
    vectors = random_vectors(len(passages), dimensions)
    question = random_vectors(1, dimensions, seed=2)[0]
    with ledger.transaction() as unit:
        add_document(unit, "a.txt", passages)
        model = unit.embeddings.register_model("fake", "model", dimensions)
        unit.embeddings.store(model, [hash_of(passage) for passage in passages], vectors)
    with ledger.transaction() as unit:
        found = stored(unit, model)
        for passage, vector in zip(passages, vectors, strict=True):
            assert same_bits(found[hash_of(passage)], vector)
        matches = unit.passages.search(model, question, 10, EVERYTHING)
        by_index = unit.passages.search(model, question, 10, EVERYTHING, compared=0)
    assert by_index == matches
    scores = cosines(vectors, question)
    best = np.argsort(-scores)[:10]
    assert [match.text for match in matches] == [passages[number] for number in best]
    # halfvec keeps 11 bits of each number.
    precise = 2e-3 if 2_000 < dimensions <= 4_000 else 1e-5
    assert [match.score for match in matches] == pytest.approx(scores[best].tolist(), abs=precise)
    assert {match.source for match in matches} == {"a.txt"}
    assert [match.position for match in matches] == best.tolist()


def test_each_width_has_the_index_that_pgvector_can_make(ledger: Ledger) -> None:
    def index(dimensions: int) -> str:
        with ledger.transaction() as unit:
            model = unit.embeddings.register_model("fake", "model", dimensions)
            found = unit.session.scalars(
                text(
                    "SELECT indexdef FROM pg_indexes WHERE tablename = :name AND indexdef ~ 'hnsw'"
                ),
                {"name": f"embeddings_{model.id}"},
            ).all()
        assert len(found) <= 1
        return found[0] if found else ""

    assert "::vector(3)) vector_cosine_ops" in index(3)
    assert "::vector(2000)) vector_cosine_ops" in index(2_000)
    assert "::halfvec(2001)) halfvec_cosine_ops" in index(2_001)
    assert "::halfvec(4000)) halfvec_cosine_ops" in index(4_000)
    assert index(4_001) == ""


def test_the_vector_that_came_first_stays(ledger: Ledger) -> None:
    first, second = random_vectors(2, 3), random_vectors(3, 3, seed=2)
    names = hashes(3)
    with ledger.transaction() as unit:
        model = unit.embeddings.register_model("fake", "model", 3)
        unit.embeddings.store(model, names[:2], first)
        unit.embeddings.store(model, names, second)
    with ledger.transaction() as unit:
        unit.embeddings.store(model, names, random_vectors(3, 3, seed=3))
    with ledger.transaction() as unit:
        found = stored(unit, model)
        assert unit.embeddings.count(model) == len(found) == 3
    for name, vector in zip(names, [*first, second[2]], strict=True):
        assert same_bits(found[name], vector)


def test_a_passage_twice_in_one_call_is_stored_once(ledger: Ledger) -> None:
    vectors = random_vectors(3, 3)
    with ledger.transaction() as unit:
        model = unit.embeddings.register_model("fake", "model", 3)
        one, other = hashes(2)
        unit.embeddings.store(model, [one, other, one], vectors)
        found = stored(unit, model)
    assert set(found) == {one, other}
    assert same_bits(found[one], vectors[0])


def test_the_layout_of_the_array_does_not_matter(ledger: Ledger) -> None:
    views: dict[str, Vectors] = {
        "by column": np.asfortranarray(random_vectors(4, 5)),
        "every other row": random_vectors(8, 5)[::2],
        "every other column": random_vectors(4, 10)[:, ::2],
        "big-endian": random_vectors(4, 5).astype(">f4"),
    }
    with ledger.transaction() as unit:
        for name, view in views.items():
            model = unit.embeddings.register_model("fake", name, 5)
            unit.embeddings.store(model, hashes(4), view)
            found = stored(unit, model)
            for key, vector in zip(hashes(4), view, strict=True):
                assert np.array_equal(found[key], vector)


def test_a_rollback_leaves_no_vector_and_no_model(ledger: Ledger) -> None:
    with ledger.transaction() as unit:
        kept = unit.embeddings.register_model("fake", "kept", 3)
    with ledger.transaction() as unit:
        model = unit.embeddings.register_model("fake", "model", 3)
        unit.embeddings.store(model, hashes(2), random_vectors(2, 3))
        unit.embeddings.store(kept, hashes(2), random_vectors(2, 3))
        unit.session.rollback()
    with ledger.transaction() as unit:
        assert unit.embeddings.find_model("fake", "model") is None
        assert unit.embeddings.count(kept) == 0
        # On the same connection, whose temporary table went with the transaction.
        unit.embeddings.store(kept, hashes(2), random_vectors(2, 3))
        assert unit.embeddings.count(kept) == 2


def test_hundreds_are_stored_in_one_call(ledger: Ledger) -> None:
    vectors = random_vectors(500, 64)
    with ledger.transaction() as unit:
        model = unit.embeddings.register_model("fake", "model", 64)
        unit.embeddings.store(model, hashes(500), vectors)
    with ledger.transaction() as unit:
        found = stored(unit, model)
    assert all(
        same_bits(found[name], vector) for name, vector in zip(hashes(500), vectors, strict=True)
    )


@pytest.mark.parametrize("is_known", [False, True])
def test_storing_many_vectors_takes_little_memory_besides_them(
    ledger: Ledger, is_known: bool
) -> None:
    vectors, names = random_vectors(3_000, 1_536), hashes(3_000)  # 18 MB
    with ledger.transaction() as unit:
        model = unit.embeddings.register_model("fake", "model", 1_536, with_index=False)
        if is_known:
            unit.embeddings.store(model, names[:1], vectors[:1])
        tracemalloc.start()
        unit.embeddings.store(model, names, list(vectors))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert unit.embeddings.count(model) == 3_000
    assert peak < 6_000_000


# Models


def test_models_and_widths_lie_side_by_side(ledger: Ledger) -> None:
    passages = ["one", "two", "three"]
    names = [hash_of(passage) for passage in passages]
    keys = [("a", "m", 3), ("a", "m", 4), ("a", "n", 3), ("b", "m", 3)]
    with ledger.transaction() as unit:
        add_document(unit, "a.txt", passages)
        models = [unit.embeddings.register_model(*key) for key in keys]
        for number, model in enumerate(models):
            # Each model has another passage nearest to the question.
            vectors = np.full((3, model.dimensions), 0.5, dtype=np.float32)
            vectors[number % 3] = 0.0
            vectors[number % 3, 0] = 1.0
            unit.embeddings.store(model, names[: 2 + number % 2], vectors[: 2 + number % 2])
    with ledger.transaction() as unit:
        assert [unit.embeddings.count(model) for model in models] == [2, 3, 2, 3]
        assert [unit.embeddings.register_model(*key).id for key in keys] == [m.id for m in models]
        for number, model in enumerate(models):
            question = np.zeros(model.dimensions, dtype=np.float32)
            question[0] = 1.0
            matches = unit.passages.search(model, question, 10, EVERYTHING)
            assert len(matches) == 2 + number % 2
            if number % 3 < len(matches):
                assert matches[0].text == passages[number % 3]
                assert matches[0].score == pytest.approx(1.0)
        newest = unit.embeddings.find_model("a", "m")
        assert newest is not None
        assert newest.dimensions == 4
        assert unit.embeddings.find_model("a", "none") is None


def test_workers_that_meet_a_new_model_at_once_make_it_once(ledger: Ledger) -> None:
    start = threading.Barrier(4, timeout=PATIENCE)

    def meet(number: int) -> int:
        start.wait()
        with ledger.transaction() as unit:
            model = unit.embeddings.register_model("fake", "new", 8)
            unit.embeddings.store(model, hashes(3, f"{number}:"), random_vectors(3, 8))
            return model.id

    with ThreadPoolExecutor(4) as threads:
        ids = set(threads.map(meet, range(4)))
    assert len(ids) == 1
    with ledger.transaction() as unit:
        [model] = unit.embeddings.get_many()
        assert unit.embeddings.count(model) == 12


def test_workers_that_store_the_same_vectors_at_once_do_not_block_each_other_for_good(
    ledger: Ledger,
) -> None:
    names, vectors = hashes(400), random_vectors(400, 8)
    with ledger.transaction() as unit:
        model = unit.embeddings.register_model("fake", "model", 8)
    start = threading.Barrier(4, timeout=PATIENCE)

    def store(number: int) -> None:
        order = slice(None, None, -1 if number % 2 else 1)
        start.wait()
        with ledger.transaction() as unit:
            unit.embeddings.store(model, names[order], vectors[order])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(store, range(4)))
    with ledger.transaction() as unit:
        found = stored(unit, model)
    assert all(same_bits(found[n], v) for n, v in zip(names, vectors, strict=True))


# Searching


def test_search_uses_the_index(ledger: Ledger) -> None:
    for dimensions in (8, 3_072):
        passages = [f"{dimensions}: {number}" for number in range(60)]
        with ledger.transaction() as unit:
            add_document(unit, f"{dimensions}.txt", passages)
            model = unit.embeddings.register_model("fake", "model", dimensions)
            unit.embeddings.store(
                model, [hash_of(passage) for passage in passages], random_vectors(60, dimensions)
            )
        with ledger.transaction() as unit, recorded(ledger) as seen:
            unit.session.execute(text("SET LOCAL enable_seqscan = off"))
            unit.session.execute(text("SET LOCAL enable_sort = off"))
            question = random_vectors(1, dimensions, seed=2)[0]
            unit.passages.search(model, question, 5, EVERYTHING, compared=0)
            statement, parameters = next(pair for pair in seen if "LATERAL" in pair[0])
            plan = unit.session.connection().exec_driver_sql("EXPLAIN " + statement, parameters)
            lines = [str(row[0]) for row in plan]
        assert f"Index Scan using embeddings_{model.id}_hnsw" in "\n".join(lines)
        # What comes in order is joined in order.
        assert "Nested Loop" in lines[1]


def test_a_passage_in_several_documents_has_one_vector_and_is_found_in_each(
    ledger: Ledger,
) -> None:
    with ledger.transaction() as unit:
        add_document(unit, "a.txt", ["shared", "only a"])
        add_document(unit, "b.txt", ["only b", "shared", "shared"])
        model = unit.embeddings.register_model("fake", "model", 3)
        names = [hash_of(passage) for passage in ("shared", "only a", "only b")]
        unit.embeddings.store(model, names, np.eye(3, dtype=np.float32))
    with ledger.transaction() as unit:
        assert unit.embeddings.count(model) == 3
        question = np.array([1, 0.2, 0.1], dtype=np.float32)
        matches = unit.passages.search(model, question, 10, EVERYTHING)
    places = {(match.source, match.position) for match in matches if match.text == "shared"}
    assert places == {("a.txt", 0), ("b.txt", 1), ("b.txt", 2)}
    assert [match.text for match in matches] == ["shared"] * 3 + ["only a", "only b"]


def test_vectors_whose_text_is_deleted_do_not_displace_matches(ledger: Ledger) -> None:
    """More of them than one pass over the index gives, and all nearer than the passage."""
    near = random_vectors(300, 64)
    question = near[0]
    with ledger.transaction() as unit:
        add_document(unit, "a.txt", ["far away"])
        model = unit.embeddings.register_model("fake", "model", 64)
        unit.embeddings.store(model, hashes(300, "gone "), near)
        unit.embeddings.store(model, [hash_of("far away")], -question[np.newaxis])

    def search(*options: str, compared: int = 0) -> list[Match]:
        with ledger.transaction() as unit:
            for option in options:
                unit.session.execute(text(f"SET LOCAL {option} = off"))
            return unit.passages.search(model, question, 1, EVERYTHING, compared=compared)

    assert [match.text for match in search(compared=100)] == ["far away"]
    assert [match.text for match in search()] == ["far away"]
    assert [match.text for match in search("enable_seqscan", "enable_sort")] == ["far away"]
