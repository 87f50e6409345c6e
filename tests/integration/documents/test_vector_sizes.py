"""Vectors of another size than their model's: that text fails alone, and all others are kept."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text as sql

from promptstack.config.settings import load_settings
from promptstack.repositories.content.vector_tables import partition_of
from promptstack.repositories.models import JobState
from promptstack.repositories.run_models import RunState
from promptstack.services.errors import InvalidInput
from promptstack.services.export.results import ExportFormat, ExportSummary, export
from promptstack.services.runs.views import RunView
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute
from tests.runs import one, work
from tests.small_server import Answer, Asked, SmallServer, small_server

SIZE, TEXTS = 8, [f"text {n}" for n in range(59)]
MISSING = "SELECT content_hash FROM items EXCEPT SELECT content_hash FROM embeddings"


def sized(size_of: Callable[[str], int]) -> Callable[[Asked], Answer]:
    def answer(asked: Asked) -> Answer:
        rows = [
            {"index": index, "embedding": [1.0] * size_of(text)}
            for index, text in enumerate(asked.body["input"])
        ]
        return 200, {"data": rows, "model": "m", "usage": {"prompt_tokens": len(rows)}}

    return answer


def one_odd(text: str) -> int:
    return SIZE + 1 if "odd" in text else SIZE


@pytest.fixture
def server() -> Iterator[SmallServer]:
    with small_server(sized(one_odd)) as server:
        yield server


@pytest.fixture
def small(
    environment: dict[str, str], server: SmallServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WorkerServices]:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with WorkerServices.open(load_settings(_env_file=None)) as stack:
        yield stack


def embed(stack: WorkerServices, texts: list[str], in_flight: int = 8) -> RunView:
    run = stack.runs.embed(texts, provider="openai", model="m", max_retries=1, in_flight=in_flight)
    return work(stack, run.id)


def paid(server: SmallServer) -> int:
    return sum(len(body["input"]) for body in server.bodies("/embeddings"))


def assert_is_told(stack: WorkerServices, run: RunView, position: int) -> None:
    [failed] = stack.run_results.failed(run.id)
    assert (failed.position, failed.code) == (position, "BAD_PROVIDER_RESPONSE")
    assert f"{SIZE + 1} numbers" in failed.error
    assert f"has {SIZE}" in failed.error


def write(stack: WorkerServices, run: RunView, path: Path) -> ExportSummary:
    return export(
        path,
        stack.run_results.produced(run.id),
        stack.run_results.failed(run.id),
        dimensions=stack.run_results.dimensions(run.id),
        count=run.succeeded,
    )


def test_numbers_as_text_are_refused_and_not_asked_for_again(
    small: WorkerServices, server: SmallServer
) -> None:
    def answer(asked: Asked) -> Answer:
        rows = [{"index": n, "embedding": ["0.5"]} for n, _ in enumerate(asked.body["input"])]
        return 200, {"data": rows, "model": "m"}

    server.answer = answer
    run = embed(small, TEXTS)
    assert (run.succeeded, run.failed, paid(server)) == (0, len(TEXTS), len(TEXTS))
    failed = next(iter(small.run_results.failed(run.id)))
    assert failed.code == "BAD_PROVIDER_RESPONSE"
    assert "numbers of vectors as text" in failed.error


@pytest.mark.parametrize("kind", ExportFormat)
def test_one_text_fails_alone_and_the_others_are_exported(
    small: WorkerServices, server: SmallServer, tmp_path: Path, kind: ExportFormat
) -> None:
    run = embed(small, [*TEXTS[:30], "odd", *TEXTS[30:]])
    assert (run.state, run.succeeded, run.failed) == (RunState.COMPLETED, 59, 1)
    assert_is_told(small, run, 31)
    assert paid(server) == 60
    summary = write(small, run, tmp_path / f"out.{kind}")
    assert (summary.items, summary.errors, summary.unwritten) == (59, 1, 0)


def test_a_text_alone_in_its_call_moves_no_model_within_a_run(
    small: WorkerServices, server: SmallServer
) -> None:
    def answer(asked: Asked) -> Answer:
        texts = len(asked.body["input"])
        if texts > 1:
            said = f"batch size {texts} > maximum allowed batch size 1"
            return 413, {"error": {"message": said, "type": "validation"}}
        return sized(one_odd)(asked)

    server.answer = answer
    texts = ["one", "two", "odd", "three"]
    run = embed(small, texts, in_flight=1)
    assert (run.succeeded, run.failed) == (3, 1)
    assert_is_told(small, run, 3)
    # Nor where the others were paid for before.
    again = embed(small, texts)
    assert (again.succeeded, again.reused, again.failed) == (3, 3, 1)
    assert_is_told(small, again, 3)
    assert small.run_results.dimensions(run.id) == SIZE


def test_most_vectors_of_an_answer_may_differ_in_size_from_the_models(
    small: WorkerServices, server: SmallServer
) -> None:
    embed(small, TEXTS[:10])
    server.answer = sized(lambda text: SIZE if text in TEXTS[:12] else SIZE + 1)
    run = embed(small, TEXTS[:15])
    assert (run.succeeded, run.reused, run.failed) == (12, 10, 3)
    found = [result.vector for result in small.run_results.produced(run.id)]
    assert np.array(found).shape == (12, SIZE)


def test_where_no_size_is_the_usual_one_the_texts_are_asked_for_apart(
    small: WorkerServices,
) -> None:
    run = embed(small, ["odd", "text"])
    assert (run.succeeded, run.failed) == (1, 1)
    assert len(list(small.run_results.produced(run.id))) == 1


def test_a_model_that_was_changed_has_the_new_size(
    small: WorkerServices, server: SmallServer
) -> None:
    embed(small, TEXTS[:10])
    server.answer = sized(lambda _: SIZE + 1)
    run = embed(small, TEXTS[10:20])
    assert (run.succeeded, run.failed) == (10, 0)
    assert small.run_results.dimensions(run.id) == SIZE + 1
    # And back.
    server.answer = sized(lambda _: SIZE)
    run = embed(small, TEXTS[20:30])
    assert (run.succeeded, run.failed) == (10, 0)
    assert small.run_results.dimensions(run.id) == SIZE
    assert len(list(small.run_results.produced(run.id))) == 10


def test_a_document_keeps_the_vectors_around_the_odd_one(
    small: WorkerServices, server: SmallServer
) -> None:
    names = [*(f"Part {n}" for n in range(9)), "odd"]
    text = "\n\n".join(f"# {name}\n\n{'word ' * 300}" for name in names)
    job = small.jobs.enqueue_embedding(text, source="a.md", provider="openai", model="m")
    execute(small, job.id)
    done = small.jobs.get(job.id)
    total = one(small, "SELECT count(*) FROM chunks")[0]
    assert (done.state, done.error_code) == (JobState.FAILED, "BAD_PROVIDER_RESPONSE")
    assert f"{SIZE + 1} numbers" in (done.error or "")
    assert f"chunk {total} of {total}" in (done.error or "")
    assert one(small, "SELECT count(*) FROM embeddings")[0] == total - 1 >= 9
    assert one(small, "SELECT array_agg(dimensions) FROM embedding_models")[0] == [SIZE]
    assert paid(server) == total


@pytest.mark.parametrize("kind", ExportFormat)
def test_a_run_before_the_change_of_its_model_is_exported_as_it_was(
    small: WorkerServices, server: SmallServer, tmp_path: Path, kind: ExportFormat
) -> None:
    before = embed(small, TEXTS[:10])
    server.answer = sized(lambda _: SIZE + 1)
    embed(small, TEXTS[10:20])
    summary = write(small, before, tmp_path / f"before.{kind}")
    assert (summary.items, summary.errors) == (10, 0)
    # Where it has vectors of both sizes, those that the format can't hold are told.
    with small.ledger.transaction() as unit:
        old, new = sorted(unit.embeddings.get_many(), key=lambda model: model.id)
        unit.session.execute(sql(f"DELETE FROM {partition_of(old)} WHERE ctid = '(0,1)'"))
        hashes = unit.session.scalars(sql(MISSING)).all()
        unit.embeddings.store(new, list(map(bytes, hashes)), np.ones((1, SIZE + 1), np.float32))
    summary = write(small, before, tmp_path / f"mixed.{kind}")
    is_text = kind is ExportFormat.JSONL
    assert (summary.items, summary.unwritten) == ((10, 0) if is_text else (9, 1))


def test_one_reused_vector_of_another_size_costs_no_other(
    small: WorkerServices, server: SmallServer
) -> None:
    embed(small, ["odd"])  # alone: it might be a model of this size
    run = embed(small, ["odd", *TEXTS[:10]])
    assert (run.succeeded, run.reused, run.failed) == (11, 1, 0)
    assert small.run_results.dimensions(run.id) == SIZE
    paid_before = paid(server)
    again = embed(small, TEXTS[:10])
    assert (again.succeeded, paid(server)) == (10, paid_before)


def test_search_is_among_vectors_of_the_size_of_its_question(
    small: WorkerServices, server: SmallServer
) -> None:
    embed(small, TEXTS[:3])
    server.answer = sized(lambda _: SIZE + 1)
    embed(small, TEXTS[3:5])
    for size, most in ((SIZE, 3), (SIZE + 1, 2)):
        found = small.search.search_vector(np.ones(size, np.float32), provider="openai", model="m")
        assert len(found) == most
    with pytest.raises(InvalidInput, match=r"has 5 numbers, .* have 9 or 8"):
        small.search.search_vector(np.ones(5, np.float32), provider="openai", model="m")
