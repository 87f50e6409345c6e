"""Collections, documents and search of a real server."""

import uuid

import pytest

from promptstack_client import Client, NotFound

TEXTS = {
    "keel": "The keel of a boat keeps it upright.",
    "sail": "The wind fills the sails of a boat.",
    "lamp": "Lamps are made of brass and glass.",
}


def test_documents_are_put_found_and_deleted(client: Client) -> None:
    made = client.collections.create(f"things {uuid.uuid4()}", language="english")
    for source, text in TEXTS.items():
        put = client.documents.put(
            source, text, collection=made, metadata={"kind": source}, provider="local"
        )
        assert put.job is not None
        client.wait(put.job, timeout=60).checked()
    listed = {document.source: document for document in client.documents.list(made.name, limit=2)}
    assert set(listed) == set(TEXTS)
    assert client.documents.get(listed["keel"]).text == TEXTS["keel"]
    assert [found.source for found in client.documents.list(made, where={"kind": "lamp"})] == [
        "lamp"
    ]
    assert client.collections.get(made).documents == 3

    def sources(query: str, **how: object) -> list[str]:
        found = client.search(query, collections=[made], provider="local", **how)  # type: ignore[arg-type]
        return [match.source for match in found]

    assert sources("what keeps a ship upright")[0] == "keel"
    assert sources("a ship", where={"kind": "sail"}) == ["sail"]
    [best] = client.search(
        "brass", collections=[str(made.id)], provider="local", hybrid=True, limit=1
    )
    assert best.source == "lamp"
    assert "brass" in [best.text[begin:end] for begin, end in best.highlights]

    assert client.collections.update(made, description="Old").description == "Old"
    client.documents.delete(listed["lamp"])
    with pytest.raises(NotFound):
        client.documents.get(listed["lamp"])
    assert client.collections.delete(made).id == made.id


def test_the_items_of_a_run_are_searched(client: Client) -> None:
    run = client.runs.embed(TEXTS.values(), provider="local")
    client.wait(run, timeout=60).checked()
    best = client.search("brass and glass", run_id=run, provider="local")[0]
    assert (best.run_id, best.text) == (run.id, TEXTS["lamp"])
