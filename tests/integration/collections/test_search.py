"""Search: within what was asked for, as many matches as there are, and each call on record."""

import hashlib
from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from sqlalchemy import text

from promptstack.repositories.content.collections import NOBODYS
from promptstack.repositories.content.documents import NewDocument, Passage
from promptstack.repositories.content.passages import Match, SearchScope
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.models import Attempt, AttemptState, Billing, JobState
from promptstack.repositories.usage import Group
from promptstack.services.access.key_terms import KeyLimits
from promptstack.services.budgets.service import Scope, Subject
from promptstack.services.documents import search
from promptstack.services.documents.search import MAX_RESULTS, spans
from promptstack.services.documents.vectors import vector_key
from promptstack.services.errors import (
    CostUnknown,
    InvalidInput,
    NotFound,
    NotPermitted,
    UserBudgetReached,
)
from promptstack.services.llm.errors import Overloaded
from promptstack.tasks.worker_services import WorkerServices
from tests.budgets import charge
from tests.fakes import FakeProvider, employ, raises
from tests.jobs import execute
from tests.runs import in_ledger, work

Vectors = npt.NDArray[np.float32]
DIMENSIONS = 16


class Directions(FakeProvider):
    """Each text has a direction of its own, always the same."""

    def vectors(self, texts: Sequence[str]) -> Vectors:
        return np.stack([direction(text) for text in texts])


def direction(text: str) -> Vectors:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    return np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)


@pytest.fixture
def fake(stack: WorkerServices) -> FakeProvider:
    provider = Directions()
    employ(stack, provider)
    return provider


@pytest.fixture
def ada(stack: WorkerServices) -> UUID:
    return add_user(stack, "ada@example.org")


def add_user(stack: WorkerServices, email: str) -> UUID:
    with stack.ledger.transaction() as unit:
        return unit.users.create(email=email).id


def put(stack: WorkerServices, source: str, said: str, **how: Any) -> UUID:
    """Store a document and embed it, by the provider `fake`."""
    done = stack.documents.put(said, source=source, provider="fake", **how)
    assert done.job is not None
    assert execute(stack, done.job.id).state is JobState.SUCCEEDED
    return done.document.id


def embed_run(stack: WorkerServices, items: Sequence[Any], **how: Any) -> UUID:
    run = work(stack, stack.runs.embed(list(items), provider="fake", **how).id)
    assert run.failed == 0
    return run.id


def found(stack: WorkerServices, query: str = "anything", **how: Any) -> set[str]:
    how = {"limit": 100, "provider": "fake", **how}
    return {match.text for match in stack.search.search(query, **how)}


# Where is searched


def test_search_stays_within_what_was_asked_for(
    stack: WorkerServices, fake: FakeProvider, ada: UUID
) -> None:
    eve = add_user(stack, "eve@example.org")
    books = stack.collections.create("books", user_id=ada)
    theirs = stack.collections.create("books", user_id=eve)
    put(stack, "a", "Ada's own.", user_id=ada)
    put(stack, "a", "Ada's book.", user_id=ada, collection="books")
    put(stack, "a", "Eve's own.", user_id=eve)
    put(stack, "a", "Eve's book.", user_id=eve, collection="books")
    put(stack, "a", "Nobody's own.")
    run = embed_run(stack, ["Ada's item.", "Ada's own."], user_id=ada)
    in_books = embed_run(stack, ["Ada's other item."], user_id=ada, collection="books")

    own, book = {"Ada's own.", "Ada's item."}, {"Ada's book.", "Ada's other item."}
    assert found(stack, user_id=ada) == own
    assert found(stack, user_id=ada, collections=["default"]) == own
    assert found(stack, user_id=ada, collections=["books"]) == book
    assert found(stack, user_id=ada, collections=[str(books.id), "default"]) == own | book
    assert found(stack, user_id=ada, collections=["all"]) == own | book
    assert found(stack, user_id=ada, run_id=run) == {"Ada's item.", "Ada's own."}
    assert found(stack, user_id=ada, run_id=str(in_books)) == {"Ada's other item."}
    assert found(stack) == {"Nobody's own."}
    # Administrators reach all of it, by ids; names are those of their own.
    reaches: dict[str, Any] = {"user_id": ada, "reaches_all": True}
    assert found(stack, collections=[theirs.id], **reaches) == {"Eve's book."}
    assert found(stack, collections=["books"], **reaches) == book

    for how in (
        {"collections": [theirs.id]},
        {"collections": [eve]},
        {"collections": [NOBODYS]},
        {"collections": ["missing"]},
        {"run_id": embed_run(stack, ["Eve's item."], user_id=eve)},
        {"run_id": UUID(int=7)},
    ):
        with pytest.raises(NotFound):
            found(stack, user_id=ada, **how)


def test_what_is_deleted_is_found_no_more(stack: WorkerServices, fake: FakeProvider) -> None:
    stack.collections.create("books")
    put(stack, "a", "A book.", collection="books")
    run = embed_run(stack, ["An item."])
    document = put(stack, "a", "A text.")
    assert found(stack, collections=["all"]) == {"A book.", "An item.", "A text."}
    stack.collections.delete("books")
    stack.documents.delete(document)
    with stack.ledger.transaction() as unit:
        unit.run_maintenance.drop(run)
    assert found(stack, collections=["all"]) == set()


def test_filters_hold_for_documents_and_items(stack: WorkerServices, fake: FakeProvider) -> None:
    put(stack, "a", "One.", metadata={"lang": "fr", "tags": ["x", "y"]})
    put(stack, "b", "Two.", metadata={"lang": "de"})
    put(stack, "c", "Three.")
    embed_run(
        stack,
        [
            {"text": "Four.", "lang": "fr", "source": "a"},
            {"text": "Five.", "lang": "de", "custom_id": "b"},
        ],
    )
    assert found(stack, where={"lang": "fr"}) == {"One.", "Four."}
    assert found(stack, where={"tags": ["y"]}) == {"One."}
    assert found(stack, source="a") == {"One.", "Four."}
    assert found(stack, source="b", where={"lang": "de"}) == {"Two.", "Five."}
    assert found(stack, where={"lang": "en"}) == set()


def test_ones_own_queries_are_not_found(stack: WorkerServices, fake: FakeProvider) -> None:
    put(stack, "a", "A text.")
    stack.collections.create("queries")
    embed_run(stack, ["What is it?"], collection="queries")
    for _ in range(3):
        assert found(stack, "What is it?") == found(stack, "Which one?") == {"A text."}


@pytest.mark.parametrize(
    "how",
    [
        {"limit": 0},
        {"limit": MAX_RESULTS + 1},
        {"collections": []},
        {"collections": ["default"] * 101},
        {"collections": "default"},
        {"collections": ["default"], "run_id": UUID(int=7)},
        {"where": {"a": "\x00"}},
        {"source": "\x00"},
    ],
    ids=["none", "many", "no collection", "collections", "no list", "both", "where", "source"],
)
def test_what_cannot_be_searched_is_refused(
    stack: WorkerServices, fake: FakeProvider, how: dict[str, Any]
) -> None:
    put(stack, "a", "A text.")
    with pytest.raises(InvalidInput):
        found(stack, **how)


@pytest.mark.parametrize(
    "query", ["", " ", "a\x00", "a" * 10_001], ids=["", "blank", "nul", "long"]
)
def test_what_is_no_query_is_refused(stack: WorkerServices, fake: FakeProvider, query: str) -> None:
    put(stack, "a", "A text.")
    with pytest.raises(InvalidInput):
        found(stack, query)
    assert fake.calls == 1


# As many as there are


class World:
    """Documents with a chunk for each text, stored without jobs, and their vectors."""

    def __init__(self, stack: WorkerServices) -> None:
        self.stack = stack
        self.texts: dict[UUID, list[tuple[str, str | None]]] = {}
        with stack.ledger.transaction() as unit:
            self.model: EmbeddingModel = unit.embeddings.register_model("fake", "m", DIMENSIONS)

    def add(self, name: str, texts: Sequence[str], lang: str | None = None) -> UUID:
        """Add a document of these chunks to a collection, which is made where it is not there."""
        collections = self.stack.collections
        try:
            place = collections.get(name).id
        except NotFound:
            place = collections.create(name).id
        known = self.texts.setdefault(place, [])
        metadata = None if lang is None else f'{{"lang": "{lang}"}}'
        with self.stack.ledger.transaction() as unit:
            new = NewDocument(None, place, f"{len(known)}", "", b"", metadata)
            row = unit.documents.lock(unit.documents.put_many([new])[new.key])
            assert row is not None
            passages = [Passage(n, 0, one, hash_of(one)) for n, one in enumerate(texts)]
            unit.documents.replace_chunks(row, passages, b"")
            vectors = np.stack([direction(one) for one in texts])
            unit.embeddings.store(self.model, [hash_of(one) for one in texts], vectors)
        known += [(one, lang) for one in texts]
        return place

    def expected(
        self, query: Vectors, places: Sequence[UUID], lang: str | None, limit: int
    ) -> list[str]:
        """What a comparison of everything finds."""
        texts = [
            one
            for place in places
            for one, its_lang in self.texts[place]
            if lang is None or its_lang == lang
        ]
        asked = query / np.linalg.norm(query)

        def score(one: str) -> float:
            vector = direction(one).astype(np.float64)
            return float(vector @ asked / np.linalg.norm(vector))

        return sorted(texts, key=lambda one: -score(one))[:limit]

    def search(
        self, query: Vectors, places: Sequence[UUID], lang: str | None, limit: int, compared: int
    ) -> list[Match]:
        scope = SearchScope(tuple(places), where={"lang": lang} if lang else {})
        with self.stack.ledger.transaction() as unit:
            # Few rows are sorted sooner than they are read by the index.
            unit.session.execute(text("SET LOCAL enable_sort = off"))
            return unit.passages.search(self.model, query, limit, scope, compared=compared)


def hash_of(one: str) -> bytes:
    return vector_key(hashlib.sha256(one.encode()).digest(), None)


@pytest.mark.parametrize("compared", [0, 2_000], ids=["index", "comparing"])
def test_a_small_collection_among_many_gives_all_that_it_has(
    stack: WorkerServices, compared: int
) -> None:
    world = World(stack)
    world.add("large", [f"Large {number}" for number in range(2_500)])
    small = world.add("small", [f"Small {number}" for number in range(30)])
    world.add("small", [f"Klein {number}" for number in range(8)], "de")
    for number in range(5):
        query = direction(f"Query {number}")
        for lang, limit in ((None, 5), (None, 38), (None, 100), ("de", 5), ("de", 100)):
            matches = world.search(query, [small], lang, limit, compared)
            assert [one.text for one in matches] == world.expected(query, [small], lang, limit)


class Small:
    """A world that all examples of one test share."""

    world: World | None = None
    places: Sequence[UUID] = ()


@effort(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    query=st.text(min_size=1, max_size=3),
    chosen=st.sets(st.integers(0, 3), min_size=1),
    lang=st.sampled_from([None, "en", "de", "fr"]),
    limit=st.integers(1, 60),
    compared=st.sampled_from([0, 10, 2_000]),
)
def test_search_finds_what_a_comparison_of_everything_finds(
    stack: WorkerServices,
    small: Small,
    query: str,
    chosen: set[int],
    lang: str | None,
    limit: int,
    compared: int,
) -> None:
    if small.world is None:
        small.world = World(stack)
        small.places = [
            small.world.add(name, [f"{name} {lang} {n}" for n in range(count)], lang)
            for name, count in (("a", 40), ("b", 1), ("c", 20), ("d", 8))
            for lang in ("en", "de")
        ][::2]
    places = [small.places[one] for one in chosen]
    asked = direction(query)
    matches = small.world.search(asked, places, lang, limit, compared)
    assert [one.text for one in matches] == small.world.expected(asked, places, lang, limit)


@pytest.fixture
def small() -> Small:
    return Small()


# Its calls are on record


def attempts(stack: WorkerServices) -> list[Attempt]:
    with stack.ledger.transaction() as unit:
        return [one for one in unit.attempts.get_many() if one.job_id is None]


def test_a_search_is_an_attempt_of_its_user(
    stack: WorkerServices, fake: FakeProvider, ada: UUID
) -> None:
    put(stack, "a", "A text.", user_id=ada)
    before: list[tuple[str, str]] = []
    fake.on_call = lambda: before.extend((one.state, one.billing) for one in attempts(stack))
    key = stack.keys.issue("ada@example.org", {"name": "k"}).key.id
    found(stack, "What is it?", user_id=ada, api_key_id=key)
    assert before == [(AttemptState.STARTED, Billing.UNKNOWN)]
    [attempt] = attempts(stack)
    assert (attempt.state, attempt.billing) == (AttemptState.SUCCEEDED, Billing.BILLED)
    assert (attempt.user_id, attempt.api_key_id, attempt.input_tokens) == (ada, key, 1)
    [usage] = stack.usage.sums([Group.MODEL], owner=ada)
    assert usage.calls == 2
    # The same query is not paid for again, nor one that was embedded as a text.
    found(stack, "What is it?", user_id=ada, api_key_id=key)
    found(stack, "A text.", user_id=ada)
    assert len(attempts(stack)) == 1
    # Another user's vector tells nothing.
    put(stack, "a", "Another.", user_id=add_user(stack, "eve@example.org"))
    found(stack, "Another.", user_id=ada)
    assert len(attempts(stack)) == 2


def test_a_failed_search_is_settled_with_its_error(
    stack: WorkerServices, fake: FakeProvider
) -> None:
    put(stack, "a", "A text.")
    fake.on_call = raises(Overloaded("It is overloaded."))
    with pytest.raises(Overloaded):
        found(stack, "What is it?")
    [attempt] = attempts(stack)
    assert (attempt.state, attempt.error_code) == (AttemptState.FAILED, Overloaded.code)
    assert found(stack, "What is it?") == {"A text."}


def test_a_budget_that_does_not_pay_lets_no_search_leave(
    stack: WorkerServices, fake: FakeProvider, ada: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(stack, "a", "A text.", user_id=ada)
    calls = fake.calls
    budget = Subject(Scope.USER, ada)
    stack.budgets.set(budget, {"day": "20"})
    with pytest.raises(CostUnknown):
        found(stack, "What is it?", user_id=ada)
    charge(stack, monkeypatch)
    with pytest.raises(UserBudgetReached):
        found(stack, "What is it that this long query looks for?", user_id=ada)
    assert fake.calls == calls
    assert attempts(stack) == []
    assert found(stack, "Which?", user_id=ada) == {"A text."}
    [attempt] = attempts(stack)
    # It was admitted at the most that it can cost, and counts at its cost.
    assert (attempt.reserved_usd, attempt.cost_usd) == (Decimal(6), Decimal(1))
    shown = stack.budgets.get(budget)
    assert shown is not None
    assert {cap.used_usd for cap in shown.caps} == {1}


def test_a_key_searches_with_the_models_that_it_may_ask(
    stack: WorkerServices, fake: FakeProvider, ada: UUID
) -> None:
    put(stack, "a", "A text.", user_id=ada)
    limits = KeyLimits(["openai"], None)
    with pytest.raises(NotPermitted):
        found(stack, user_id=ada, key_limits=limits)


def test_a_search_whose_process_died_counts_as_lost(
    stack: WorkerServices, fake: FakeProvider
) -> None:
    put(stack, "a", "A text.")
    found(stack, "What is it?")
    with stack.ledger.transaction() as unit:
        unit.session.execute(
            text(
                "UPDATE attempts SET state = 'started', billing = 'unknown', finished_at = NULL, "
                "started_at = now() - interval '2 hours' WHERE job_id IS NULL"
            )
        )
    stack.cleanup.run_once()
    [attempt] = attempts(stack)
    assert attempt.state == AttemptState.LOST


# Words


TALES = {
    "owl": "The owl sleeps by day and hunts mice at night.",
    "boat": "A boat left the harbour in the fog.",
    "code": "The error E-4711 is raised where the disk is full.",
    "pier": "Fishermen sat on the pier and waited.",
}


@pytest.fixture
def tales(stack: WorkerServices, fake: FakeProvider) -> dict[str, UUID]:
    return {name: put(stack, name, said) for name, said in TALES.items()}


@pytest.mark.parametrize(
    ("query", "best"),
    [("E-4711", "code"), ("boats in the foggy harbour", "boat"), ("hunting at night", "owl")],
    ids=["a name", "words", "endings"],
)
def test_hybrid_finds_what_has_the_words(
    stack: WorkerServices, tales: dict[str, UUID], query: str, best: str
) -> None:
    """The fake vectors of texts have nothing to do with their meaning."""
    [first, *_] = stack.search.search(query, provider="fake", hybrid=True, limit=2)
    assert first.document_id == tales[best]
    assert len(stack.search.search(query, provider="fake", hybrid=True, limit=4)) == 4


def test_hybrid_ranks_items_of_runs_too(stack: WorkerServices, fake: FakeProvider) -> None:
    run = embed_run(stack, list(TALES.values()))
    [first, *_] = stack.search.search("E-4711", provider="fake", hybrid=True, run_id=run)
    assert first.text == TALES["code"]


def test_hybrid_stays_within_what_was_asked_for(
    stack: WorkerServices, tales: dict[str, UUID]
) -> None:
    stack.collections.create("books")
    put(stack, "a", "Another boat.", collection="books")
    how: dict[str, Any] = {"hybrid": True, "limit": 10}
    assert found(stack, "boat", collections=["books"], **how) == {"Another boat."}
    assert found(stack, "boat", source="owl", **how) == {TALES["owl"]}


def test_highlights_are_where_the_words_are(stack: WorkerServices, fake: FakeProvider) -> None:
    said = "Über dem Hafen 🦉 hunts an Owl; owls hunt."
    put(stack, "a", said)
    [match] = stack.search.search("the hunting owl", provider="fake")
    assert [said[begin:end] for begin, end in match.highlights] == ["hunts", "Owl", "owls", "hunt"]


def test_only_the_best_matches_have_highlights(
    stack: WorkerServices, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "HIGHLIGHTED", 2)
    embed_run(stack, [f"Owl {number}." for number in range(5)])
    matches = stack.search.search("owl", provider="fake")
    assert [len(match.highlights) for match in matches] == [1, 1, 0, 0, 0]


def test_a_collection_has_its_language(stack: WorkerServices, fake: FakeProvider) -> None:
    stack.collections.create("deutsch", language="german")
    stack.collections.create("plain", language="simple")
    for name in ("deutsch", "plain"):
        put(stack, "a", "Die Boote liegen im Hafen.", collection=name)
    for name, words in (("deutsch", ["Boote"]), ("plain", [])):
        [match] = stack.search.search("ein Boot", provider="fake", collections=[name])
        assert [match.text[begin:end] for begin, end in match.highlights] == words
    with pytest.raises(InvalidInput, match="klingon"):
        stack.collections.create("other", language="klingon")


def test_words_of_older_chunks_are_filled_in(stack: WorkerServices, tales: dict[str, UUID]) -> None:
    before = in_ledger(stack, "SELECT string_agg(CAST(words AS text), ';' ORDER BY id) FROM chunks")
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("UPDATE chunks SET words = NULL"))
    stack.content_maintenance.run_once()
    after = in_ledger(stack, "SELECT string_agg(CAST(words AS text), ';' ORDER BY id) FROM chunks")
    assert before == after


def test_old_queries_are_forgotten(stack: WorkerServices, tales: dict[str, UUID]) -> None:
    found(stack, "What is it?")
    stack.content_maintenance.run_once()
    assert in_ledger(stack, "SELECT count(*) FROM query_vectors") == 1
    with stack.ledger.transaction() as unit:
        unit.session.execute(
            text("UPDATE query_vectors SET created_at = now() - interval '8 days'")
        )
    stack.content_maintenance.run_once()
    assert in_ledger(stack, "SELECT count(*) FROM query_vectors") == 0


PART = st.text(alphabet="ab <>", max_size=5)


@given(PART, st.lists(st.tuples(PART, PART), max_size=4))
def test_spans_are_those_of_the_marks(first: str, parts: list[tuple[str, str]]) -> None:
    marked = first + "".join(f"[{inside}]{after}" for inside, after in parts)
    plain = first + "".join(inside + after for inside, after in parts)
    places = spans(marked, "[", "]")
    assert [plain[begin:end] for begin, end in places] == [inside for inside, _ in parts]


def test_a_hybrid_search_takes_items_of_any_length(
    stack: WorkerServices, fake: FakeProvider
) -> None:
    """PostgreSQL keeps no more than 1 MB of words of one text."""
    numbers = np.random.default_rng(1).integers(0, 10**12, 90_000)
    run = embed_run(stack, ["owl " + " ".join(f"w{n:012}" for n in numbers), "A boat."])
    matches = stack.search.search("owl", provider="fake", run_id=run, hybrid=True)
    assert matches[0].text.startswith("owl ")
    assert matches[0].highlights == ((0, 3),)
    assert len(matches) == 2
