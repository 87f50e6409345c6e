"""Requests for embeddings may ask for a size: such vectors are kept apart, and found again."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pytest

from promptstack.repositories.run_models import RunState
from promptstack.services.llm.answers import EmbeddingResponse
from promptstack.services.runs import sizes
from promptstack.services.runs.results import Span
from promptstack.services.runs.service import BadInputs
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.runs import in_ledger, work


def line(custom_id: str, text: str, **body: Any) -> dict[str, Any]:
    body = {"model": "fake-1", "input": text, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body}


@pytest.fixture
def asked(stack: WorkerServices) -> list[tuple[int | None, Sequence[Any]]]:
    """The sizes and texts of all calls, of a provider that honours sizes."""
    calls: list[tuple[int | None, Sequence[Any]]] = []
    provider = FakeProvider()

    class Honours(provider.service):  # type: ignore[misc, name-defined]
        takes_dimensions = True

        async def _embed(
            self, texts: Sequence[Any], model: str, user_id: UUID | None, dimensions: int | None
        ) -> EmbeddingResponse:
            calls.append((dimensions, list(texts)))
            rows: npt.NDArray[np.float32] = np.ones((len(texts), dimensions or 3), np.float32)
            rows[:, 0] = [len(text) for text in texts]
            return EmbeddingResponse(rows, model, len(texts))

    provider.service = Honours
    provider.serve(stack)
    return calls


def sizes_of(stack: WorkerServices, run_id: UUID) -> list[int | None]:
    found = [one for block in stack.run_results.lines(run_id, Span()) for one in block]
    return [None if one.vector is None else one.vector.size for one in found]


def test_each_line_has_a_vector_of_the_size_it_asks_for(
    stack: WorkerServices, asked: list[Any]
) -> None:
    requests = [
        line("a", "one", dimensions=2),
        line("b", "three"),
        line("c", "one", dimensions=5, encoding_format="base64"),
        line("d", "seventh", dimensions=2),
        line("e", "one", dimensions=2, encoding_format="base64"),
    ]
    run = work(stack, stack.runs.embed(requests, provider="fake").id)
    assert (run.state, run.succeeded, run.reused) == (RunState.COMPLETED, 5, 1)
    assert sorted(asked, key=str) == [(2, ["one", "seventh"]), (5, ["one"]), (None, ["three"])]
    assert sizes_of(stack, run.id) == [2, 3, 5, 2, 2]
    found = {one.custom_id: one.vector for one in stack.run_results.produced(run.id)}
    assert [found[one].tolist() for one in "bd"] == [[5, 1, 1], [7, 1]]  # type: ignore[union-attr]
    [lines] = stack.run_results.lines(run.id, Span())
    assert [one.parameters for one in lines] == [
        {"dimensions": 2},
        {},
        {"dimensions": 5, "encoding_format": "base64"},
        {"dimensions": 2},
        {"dimensions": 2, "encoding_format": "base64"},
    ]


def test_a_size_is_no_size_of_the_model_and_nothing_is_paid_twice(
    stack: WorkerServices, asked: list[Any]
) -> None:
    small = [line("a", "one", dimensions=2), line("b", "two", dimensions=2)]
    work(stack, stack.runs.embed(small, provider="fake").id)
    with stack.ledger.transaction() as unit:
        assert unit.embeddings.find_model("fake", "fake-1") is None
    run = work(stack, stack.runs.embed(["one", "two"], provider="fake").id)
    assert (run.succeeded, run.reused, sizes_of(stack, run.id)) == (2, 0, [3, 3])
    with stack.ledger.transaction() as unit:
        known = unit.embeddings.find_model("fake", "fake-1")
        assert known is not None
        assert known.dimensions == 3
    for requests, size in ((small, 2), ([line("a", "one"), line("b", "two")], 3)):
        ready = stack.runs.prepare_embedding(requests, provider="fake")
        assert (ready.to_pay, ready.reused) == (0, 2)
        again = work(stack, stack.runs.start(ready.run_id).id)
        assert (again.reused, sizes_of(stack, again.id)) == (2, [size] * 2)
    assert len(asked) == 2
    # With the model's own size asked for, it is kept apart all the same.
    same = work(stack, stack.runs.embed([line("a", "one", dimensions=3)], provider="fake").id)
    assert (same.reused, sizes_of(stack, same.id)) == (0, [3])
    assert in_ledger(stack, "SELECT count(*) FROM embedding_models") == 3


def test_a_provider_without_sizes_refuses_the_line(stack: WorkerServices) -> None:
    FakeProvider().serve(stack)
    with pytest.raises(BadInputs, match="2: The size of vectors can't be chosen"):
        stack.runs.embed([line("a", "x"), line("b", "y", dimensions=2)], provider="fake")


@pytest.mark.parametrize("size", [0, -1, 16_001, True, 2.0, "2"], ids=str)
def test_a_size_that_is_none_is_refused(size: Any, stack: WorkerServices, asked: list[Any]) -> None:
    with pytest.raises(BadInputs, match="dimensions that are no whole number from 1 to 16000"):
        stack.runs.embed([line("a", "x"), line("b", "y", dimensions=size)], provider="fake")


def test_a_model_has_only_so_many_sizes(
    stack: WorkerServices, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "MAX_ASKED_SIZES", 2)
    work(stack, stack.runs.embed([line("a", "x", dimensions=4)], provider="fake").id)
    requests = [line(f"{n}", "x", dimensions=size) for n, size in enumerate((4, 5, 4, 6))]
    with pytest.raises(BadInputs, match="4: Vectors of fake/fake-1 are kept in 2 sizes already"):
        stack.runs.embed(requests, provider="fake")
    stack.runs.embed(requests[:3], provider="fake")
