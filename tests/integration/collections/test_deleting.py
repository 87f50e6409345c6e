"""Documents, runs and collections are deleted with the vectors that nobody else uses."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from sqlalchemy import text

from promptstack.config.settings import Settings
from promptstack.repositories.content.documents import Passage
from promptstack.repositories.models import JobState
from promptstack.repositories.run_models import RunState
from promptstack.services.errors import NotFound, WrongState
from promptstack.services.maintenance import contents
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.jobs import PASSAGE, embed, execute, padded
from tests.processes import PATIENCE, wait_until
from tests.runs import in_ledger, work

WORDS = ["sea", "owl", "boat", "fog", "pier"]
USES = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")


@pytest.fixture
def stack(settings: Settings) -> Iterator[WorkerServices]:
    """Cuts documents into short passages."""
    with WorkerServices.open(settings.model_copy(update=PASSAGE)) as opened:
        yield opened


def put(stack: WorkerServices, source: str, words: Sequence[str], **how: Any) -> UUID:
    """Embed a document with a passage for each word, and return its id."""
    job = embed(stack, *words, source=source, **how)
    assert execute(stack, job.id).state is JobState.SUCCEEDED
    result = stack.jobs.get(job.id).result
    assert result is not None
    return UUID(result["document_id"])


def vectors(stack: WorkerServices) -> int:
    return int(in_ledger(stack, "SELECT count(*) FROM embeddings"))


def tidy(stack: WorkerServices) -> None:
    """What workers do in the background, until nothing is left to do."""
    stack.content_maintenance.run_once()  # ends and deletes the runs of a collection
    while in_ledger(stack, "SELECT EXISTS (SELECT FROM pruned_runs)"):
        stack.run_maintenance.run_once(0)
    stack.content_maintenance.run_once()


def make_due(stack: WorkerServices) -> None:
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("UPDATE unused_contents SET due_at = now()"))


def drop(stack: WorkerServices, run_id: UUID) -> None:
    with stack.ledger.transaction() as unit:
        unit.run_maintenance.drop(run_id, drops_vectors=True)


def test_a_document_takes_the_vectors_that_nobody_else_uses(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    first = put(stack, "a", ["sea", "owl"])
    second = put(stack, "b", ["owl", "boat"])
    run = work(stack, stack.runs.embed([padded("boat"), padded("fog")], provider="fake").id)
    assert vectors(stack) == 4
    stack.documents.delete(first)
    with pytest.raises(NotFound):
        stack.documents.get(first)
    tidy(stack)
    assert vectors(stack) == 3  # without the sea
    stack.documents.delete(second)
    tidy(stack)
    assert vectors(stack) == 2  # the boat is the run's, too
    drop(stack, run.id)
    tidy(stack)
    assert vectors(stack) == 0
    assert in_ledger(stack, "SELECT count(*) FROM unused_contents") == 0


def test_a_text_that_comes_back_is_not_paid_for_again(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    for words in (["sea"], ["owl"], ["sea"]):
        put(stack, "a", words)
        tidy(stack)
    assert vectors(stack) == fake_llm.calls == 2
    make_due(stack)
    tidy(stack)
    assert vectors(stack) == 1


def test_no_vector_is_deleted_that_somebody_has_just_found(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    first = put(stack, "a", ["sea"])
    second = put(stack, "b", ["owl"])
    with stack.ledger.transaction() as unit:
        [sea] = unit.documents.chunks(first)
    stack.documents.delete(first)
    with ThreadPoolExecutor(1) as other, stack.ledger.transaction() as unit:
        document = unit.documents.lock(second)
        assert document is not None
        # As a job does whose document has this passage now: it finds the vector and uses it.
        passage = Passage(0, 0, sea.text, sea.content_hash)
        unit.documents.replace_chunks(document, [passage], b"cut")
        assert not unit.documents.chunks_without_vector(second, "fake", "fake-1")
        deleting = other.submit(stack.content_maintenance.run_once)
        wait_until(
            lambda: deleting.done() or unit.session.scalar(USES), "the deletion of vectors to wait"
        )
        unit.session.commit()
        deleting.result(PATIENCE)
    tidy(stack)
    with stack.ledger.transaction() as unit:
        assert not unit.documents.chunks_without_vector(second, "fake", "fake-1")


def test_vectors_of_a_job_under_way_go_once_they_are_stored(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    """Its document is deleted while its call is made; nobody else would know of the vector."""
    job = embed(stack, "sea")
    found: list[UUID] = []

    def delete() -> None:
        [document] = stack.documents.get_page("default").rows
        found.append(document.id)
        stack.documents.delete(document.id)
        stack.content_maintenance.run_once()

    fake_llm.on_call = delete
    execute(stack, job.id)
    assert found
    assert vectors(stack) == 1
    make_due(stack)
    tidy(stack)
    assert vectors(stack) == 0


def test_a_collection_goes_with_all_that_is_in_it(
    stack: WorkerServices, fake_llm: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "CHUNKS_AT_ONCE", 2)
    books = stack.collections.create("books")
    kept = put(stack, "a", ["sea", "owl"])
    for number in range(5):
        put(stack, f"b{number}", ["owl", f"boat-{number}"], collection="books")
    ended = work(stack, stack.runs.embed(["fog"], provider="fake", collection="books").id)
    going_on = stack.runs.embed(["pier"], provider="fake", collection="books")
    assert vectors(stack) == 8

    shown = stack.collections.delete("books")
    assert (shown.documents, shown.runs) == (5, 2)
    assert shown.deleted_at is not None
    assert stack.collections.get(books.id).deleted_at == shown.deleted_at
    for door in (
        lambda: stack.collections.get("books"),
        lambda: embed(stack, "sea", collection="books"),
        lambda: embed(stack, "sea", collection=books.id),
        lambda: stack.runs.embed(["sea"], provider="fake", collection="books"),
    ):
        with pytest.raises(NotFound):
            door()
    again = stack.collections.create("books")  # its name is free

    tidy(stack)
    assert stack.runs.get(going_on.id).state is RunState.CANCELLED
    # The index of the run's model is built at its end, by a job of its own.
    left = stack.collections.get(books.id)
    assert (left.documents, left.runs) == (0, 1)
    work(stack, going_on.id)
    tidy(stack)
    with pytest.raises(NotFound):
        stack.collections.get(books.id)
    with pytest.raises(NotFound):
        stack.runs.get(ended.id)
    tidy(stack)
    assert vectors(stack) == 2
    assert stack.documents.get(kept).chunks == 2
    assert stack.collections.get(again.id).documents == 0


def test_a_default_collection_stays(stack: WorkerServices) -> None:
    with pytest.raises(WrongState):
        stack.collections.delete("default")
    with pytest.raises(WrongState):
        stack.collections.update("default", name="other")


def test_a_document_that_comes_into_a_collection_as_it_goes_is_deleted_with_it(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    books = stack.collections.create("books")
    with stack.ledger.transaction() as unit:
        embed(stack, "sea", collection="books", session=unit.session)
        with ThreadPoolExecutor(1) as other:
            other.submit(stack.collections.delete, "books").result(PATIENCE)
            other.submit(tidy, stack)
            unit.session.commit()
    tidy(stack)
    with pytest.raises(NotFound):
        stack.collections.get(books.id)
    assert in_ledger(stack, "SELECT count(*) FROM documents") == 0


PUT = st.tuples(
    st.just("put"), st.sampled_from("abc"), st.lists(st.sampled_from(WORDS), min_size=1, max_size=3)
)
RUN = st.tuples(st.just("run"), st.just(""), st.lists(st.sampled_from(WORDS), min_size=1))
DELETE = st.tuples(
    st.sampled_from(["delete", "drop", "tidy", "due"]), st.sampled_from("abc"), st.just(list[str]())
)


@effort(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(PUT, RUN, DELETE), min_size=3, max_size=12))
def test_vectors_are_there_as_long_as_somebody_uses_them(
    stack: WorkerServices, fake_llm: FakeProvider, steps: list[tuple[str, str, list[str]]]
) -> None:
    used: dict[str, set[str]] = {}
    ids: dict[str, UUID] = {}
    for what, source, words in [*steps, ("due", "", []), ("tidy", "", [])]:
        if what == "put":
            ids[source] = put(stack, source, words)
            used[source] = set(words)
        elif what == "run":
            run_id = stack.runs.embed(list(map(padded, words)), provider="fake").id
            work(stack, run_id)
            ids[str(run_id)], used[str(run_id)] = run_id, set(words)
        elif what == "delete" and source in used:
            stack.documents.delete(ids[source])
            del used[source]
        elif what == "drop" and (runs := [one for one in used if len(one) > 1]):
            drop(stack, ids[runs[0]])
            del used[runs[0]]
        elif what == "due":
            make_due(stack)
        elif what == "tidy":
            tidy(stack)
        there = {word for words in used.values() for word in words}
        assert vectors(stack) >= len(there)
    assert vectors(stack) == len(there)
    for name in used:
        if len(name) > 1:
            drop(stack, ids[name])
        else:
            stack.documents.delete(ids[name])
    tidy(stack)
    assert vectors(stack) == 0


def test_vectors_of_a_document_that_is_deleted_while_it_is_cut_anew_go_too(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    document_id = put(stack, "a", ["sea"])
    new = Passage(0, 0, "owl", b"n" * 32)
    with ThreadPoolExecutor(1) as thread:
        with stack.ledger.transaction() as unit:
            document = unit.documents.lock(document_id)
            assert document is not None
            unit.documents.replace_chunks(document, [new], b"x" * 32)
            deleting = thread.submit(stack.documents.delete, document_id)
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            wait_until(lambda: in_ledger(stack, waits), "the deletion to wait")
        deleting.result(60)
    noted = (
        f"SELECT count(*) FROM unused_contents WHERE content_hash = '\\x{new.content_hash.hex()}'"
    )
    assert in_ledger(stack, noted) == 1
