"""A page of results is read as columns, and has what its rows have in the ledger."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from promptstack.config.names import VectorType
from promptstack.repositories.runs import page_columns
from promptstack.repositories.wire_values import load_jsonb
from promptstack.tasks.worker_services import WorkerServices
from tests.runs import work

TEXTS = [f"Day {number} was quiet." for number in range(6)]
ODD: list[dict[str, Any]] = [
    {"whole": 10**30, "small": -(2**63), "most": 2**64 - 1},
    {"float": 6e23, "tiny": 5e-324, "deep": [[{"a": 1.5}]]},
    {"text": 'a \\ " \n \u2028 \U0001f6a2', "nothing": None, "yes": True},
    {},
]


def as_jsonb(value: Any) -> bytes:
    """JSON as jsonb writes it: numbers without an exponent."""
    if isinstance(value, float):
        return f"{value:.400f}".rstrip("0").encode() + b"0"
    if isinstance(value, list):
        return b"[" + b", ".join(map(as_jsonb, value)) + b"]"
    return json.dumps(value).encode()


@given(
    st.lists(
        st.integers(-(10**40), 10**40)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"]))
    )
)
def test_what_jsonb_gives_is_read_as_json_reads_it(values: list[Any]) -> None:
    written = as_jsonb(values)
    read = load_jsonb(written)
    assert repr(read) == repr(json.loads(written))


def test_a_page_has_what_the_ledger_has(stack: WorkerServices) -> None:
    items = [
        {"custom_id": f"id é \U0001f6a2 {n}", "prompt": f"Say {n}.", "odd": odd}
        for n, odd in enumerate(ODD)
    ]
    run = work(stack, stack.runs.generate(items, provider="demo").id)
    rows = list(stack.run_results.produced(run.id, with_input=True))
    assert [row.custom_id for row in rows] == [item["custom_id"] for item in items]
    assert [row.metadata for row in rows] == [{"odd": odd} for odd in ODD]
    assert [row.text for row in rows] == [item["prompt"] for item in items]
    assert all(row.answer and row.answer["text"] and row.vector is None for row in rows)


def test_a_long_page_is_cut_and_goes_on(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = work(stack, stack.runs.embed(TEXTS, provider="local").id)
    whole = list(stack.run_results.produced(run.id))
    monkeypatch.setattr(page_columns, "MOST_BYTES", 2_500)  # two vectors and a bit
    for with_input in (False, True):
        cut = list(stack.run_results.produced(run.id, with_input=with_input))
        assert [row.position for row in cut] == [1, 2, 3, 4, 5, 6]
    assert all(
        np.array_equal(one.vector, other.vector)  # type: ignore[arg-type]
        for one, other in zip(whole, cut, strict=True)
    )
    monkeypatch.setattr(page_columns, "MOST_BYTES", 1)
    assert len(list(stack.run_results.produced(run.id))) == 6


def test_each_vector_is_of_the_first_model_that_has_one(stack: WorkerServices) -> None:
    run = work(stack, stack.runs.embed(TEXTS, provider="local").id)
    with stack.ledger.transaction() as unit:
        found = unit.session.scalars(text("SELECT content_hash FROM items ORDER BY position"))
        keys = list(map(bytes, found))
        other = unit.embeddings.register_model(
            run.provider, run.model, 3, storage=VectorType.HALFVEC, with_index=False
        )
        unit.embeddings.store(other, [keys[4], keys[1]], np.array([[1, 2, 3], [4, 5, 6]], "f4"))
        unit.session.execute(
            text("DELETE FROM embeddings WHERE content_hash IN (:gone, :kept_as_half)"),
            {"gone": keys[2], "kept_as_half": keys[4]},
        )
    rows = list(stack.run_results.produced(run.id))
    sizes = {row.position: row.vector.size for row in rows if row.vector is not None}
    assert sizes == {1: 256, 2: 256, 4: 256, 5: 3, 6: 256}
    assert rows[3].vector is not None
    assert rows[3].vector.tolist() == [1.0, 2.0, 3.0]
