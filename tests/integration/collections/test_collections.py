"""Collections: documents and runs belong to one, and everybody has a default one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from alembic import command
from alembic.config import Config
from pydantic import JsonValue
from sqlalchemy import create_engine, text

from promptstack.repositories import migrations
from promptstack.repositories.migrations import upgrade
from promptstack.services.collections import service
from promptstack.services.collections.lookup import ALL
from promptstack.services.collections.service import CollectionExists
from promptstack.services.errors import IdempotencyConflict, InvalidInput, NotFound
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve

NOBODYS = UUID(int=0)


@pytest.fixture
def ada(stack: WorkerServices) -> UUID:
    return add_user(stack, "ada@example.org")


@pytest.fixture
def eve(stack: WorkerServices) -> UUID:
    return add_user(stack, "eve@example.org")


def add_user(stack: WorkerServices, email: str) -> UUID:
    with stack.ledger.transaction() as unit:
        return unit.users.create(email=email).id


def places(stack: WorkerServices, table: str = "documents") -> set[tuple[UUID, UUID | None]]:
    """The collections of all documents or runs, with their users."""
    with stack.ledger.transaction() as unit:
        rows = unit.session.execute(text(f"SELECT collection_id, user_id FROM {table}"))
        return {(row.collection_id, row.user_id) for row in rows}


@pytest.mark.parametrize("has_user", [True, False], ids=["user", "nobody"])
def test_documents_and_runs_go_to_a_default_collection(
    stack: WorkerServices, ada: UUID, has_user: bool
) -> None:
    user = ada if has_user else None
    default = stack.collections.get("default", owner=user)
    assert default.id == (ada if has_user else NOBODYS)
    stack.jobs.enqueue_embedding("A text.", source="a", provider="local", user_id=user)
    stack.jobs.enqueue_embedding(
        "A text.", source="b", provider="local", user_id=user, collection="default"
    )
    run = stack.runs.embed(["A text."], provider="local", user_id=user)
    assert places(stack) == places(stack, "runs") == {(default.id, user)}
    assert run.collection_id == default.id


def test_the_same_source_in_two_collections_is_two_documents(
    stack: WorkerServices, ada: UUID
) -> None:
    books = stack.collections.create("books", user_id=ada)
    stack.jobs.enqueue_many(
        [
            {"text": "One.", "source": "a", "provider": "local", "user_id": ada},
            {
                "text": "Two.",
                "source": "a",
                "provider": "local",
                "user_id": ada,
                "collection": "books",
            },
            {
                "text": "Three.",
                "source": "a",
                "provider": "local",
                "user_id": ada,
                "collection": books.id,
            },
        ]
    )
    with stack.ledger.transaction() as unit:
        texts = {one.collection_id: one.text for one in unit.documents.get_many()}
    assert texts == {ada: "One.", books.id: "Three."}


def test_another_collection_is_another_request(stack: WorkerServices) -> None:
    stack.collections.create("books")
    how: dict[str, Any] = {"source": "a", "provider": "local", "idempotency_key": "k"}
    stack.jobs.enqueue_embedding("One.", **how)
    stack.jobs.enqueue_embedding("One.", **how, collection="default")
    with pytest.raises(IdempotencyConflict):
        stack.jobs.enqueue_embedding("One.", **how, collection="books")


def test_metadata_stay_unless_others_are_given(stack: WorkerServices) -> None:
    def put(metadata: dict[str, JsonValue] | None) -> object:
        stack.jobs.enqueue_embedding("One.", source="a", provider="local", metadata=metadata)
        with stack.ledger.transaction() as unit:
            [document] = unit.documents.get_many()
            return document.attributes

    assert put(None) is None
    assert put({"lang": "fr"}) == {"lang": "fr"}
    assert put(None) == {"lang": "fr"}
    assert put({}) == {}
    with pytest.raises(InvalidInput, match="MAX_METADATA_BYTES"):
        put({"lang": "f" * stack.settings.max_metadata_bytes})


@pytest.mark.parametrize("door", ["embedding", "run"])
def test_another_users_collection_does_not_exist(
    stack: WorkerServices, ada: UUID, eve: UUID, door: str
) -> None:
    theirs = stack.collections.create("theirs", user_id=eve)
    how: dict[str, Any] = {"provider": "local", "user_id": ada}
    put: dict[str, Callable[[UUID | str], object]] = {
        "run": lambda given: stack.runs.embed(["A text."], collection=given, **how),
        "embedding": lambda given: stack.jobs.enqueue_embedding(
            "A text.", source="a", collection=given, **how
        ),
    }
    for given in ("theirs", theirs.id, str(theirs.id), eve, NOBODYS, "missing"):
        with pytest.raises(NotFound):
            put[door](given)
        with pytest.raises(NotFound):
            stack.collections.get(given, owner=ada)
    assert places(stack, "runs") == places(stack) == set()


def test_names_are_unique_for_their_user(stack: WorkerServices, ada: UUID, eve: UUID) -> None:
    for user in (ada, eve, None):
        stack.collections.create("books", user_id=user)
        with pytest.raises(CollectionExists):
            stack.collections.create("books", user_id=user)
        with pytest.raises(CollectionExists):
            stack.collections.create("default", user_id=user)


@pytest.mark.parametrize(
    "name",
    ["", " a", "a/b", "a\x00", "a\nb", "n" * 101, ALL, str(UUID(int=7))],
    ids=["empty", "blank", "slash", "nul", "newline", "long", "all", "id"],
)
def test_a_name_that_means_something_else_is_refused(stack: WorkerServices, name: str) -> None:
    with pytest.raises(InvalidInput):
        stack.collections.create(name)


def test_bodies_name_a_collection(stack: WorkerServices) -> None:
    with serve(stack) as client:
        with stack.ledger.transaction() as unit:
            user = unit.users.get_by_email("ada@example.org")
            assert user is not None
        books = stack.collections.create("books", user_id=user.id)
        body = {"text": "One.", "source": "a", "provider": "local", "collection": "books"}
        answer = client.post("/api/v1/embeddings", json={**body, "metadata": {"lang": "fr"}})
        assert answer.status_code == 202, answer.text
        run = {"items": ["One."], "provider": "local", "collection": str(books.id)}
        answer = client.post("/api/v1/runs/embeddings", json=run)
        assert answer.json()["collection_id"] == str(books.id)
        assert places(stack) == places(stack, "runs") == {(books.id, user.id)}
        problem(
            client.post("/api/v1/embeddings", json={**body, "collection": "x"}), 404, "NOT_FOUND"
        )
        problem(
            client.post("/api/v1/runs/embeddings", json={**run, "collection": "x"}),
            404,
            "NOT_FOUND",
        )


OLD_DOCUMENT = """
INSERT INTO documents (id, user_id, source, text, content_hash)
VALUES (gen_random_uuid(), :user, :source, 'A text.', '')
ON CONFLICT ON CONSTRAINT documents_source_key DO UPDATE SET text = excluded.text
"""
"""As the version before collections stores one."""
OLD_RUN = """
INSERT INTO runs (id, kind, user_id, name, provider, model, parameters, in_flight, max_retries,
    expires_at)
VALUES (gen_random_uuid(), 'embedding', :user, '', 'local', 'm', '{}', 1, 1, now())
"""


def test_what_is_there_moves_into_default_collections(stack: WorkerServices, ada: UUID) -> None:
    stack.collections.create("books")
    for name in ("books", "default"):
        stack.jobs.enqueue_embedding("One.", source="a", provider="local", collection=name)
    migrate_down(stack)
    engine = create_engine(stack.database_url)
    with engine.begin() as connection:
        for user in (ada, None):
            for source in ("a", "b", "b"):
                connection.execute(text(OLD_DOCUMENT), {"user": user, "source": source})
            connection.execute(text(OLD_RUN), {"user": user})
    upgrade(stack.ledger.engine)
    assert places(stack) == places(stack, "runs") == {(ada, ada), (NOBODYS, None)}
    with engine.begin() as connection:
        # A process of that version, which is still running.
        connection.execute(text(OLD_DOCUMENT), {"user": ada, "source": "b"})
        connection.execute(text(OLD_DOCUMENT), {"user": ada, "source": "c"})
        connection.execute(text(OLD_RUN), {"user": None})
        assert connection.scalar(text("SELECT count(*) FROM documents")) == 5
    assert places(stack) == places(stack, "runs") == {(ada, ada), (NOBODYS, None)}
    engine.dispose()


def migrate_down(stack: WorkerServices) -> None:
    """Go back to the version before collections."""
    stack.ledger.engine.dispose()
    engine = create_engine(stack.database_url)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.attributes["connection"] = connection
        command.downgrade(config, "0031")
    engine.dispose()


def test_a_user_has_only_so_many_collections(
    stack: WorkerServices, ada: UUID, eve: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_COLLECTIONS", 3)
    for name in ("one", "two"):
        stack.collections.create(name, user_id=ada)
    with pytest.raises(InvalidInput, match="3 collections"):
        stack.collections.create("three", user_id=ada)
    stack.collections.create("three", user_id=eve)
    stack.collections.delete("one", owner=ada)
    stack.collections.create("three", user_id=ada)


def test_a_description_is_short(stack: WorkerServices) -> None:
    most = "d" * service.MAX_DESCRIPTION_CHARACTERS
    made = stack.collections.create("books", description=most)
    for description in (most + "d", "\x00"):
        with pytest.raises(InvalidInput):
            stack.collections.create("other", description=description)
        with pytest.raises(InvalidInput):
            stack.collections.update(made.id, description=description)
