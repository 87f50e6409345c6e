"""Runs whose items come as a file, or are too many for the request itself."""

import gzip
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from promptstack_client import Client, Conflict
from promptstack_client.sources import Item

Make = Callable[..., Client]
RUN: dict[str, Any] = {
    "id": "01a229a9-6921-727d-884b-8783fade0286",
    "kind": "generation",
    "state": "running",
    "provider": "demo",
    "model": "demo",
    "total": 2,
    "succeeded": 0,
    "failed": 0,
    "created_at": "2026-11-30T10:00:00Z",
}


def test_a_form_is_whole_again_when_it_is_sent_again(
    make: Make, pauses: list[float], tmp_path: Path
) -> None:
    bodies = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        bodies.append(b"".join(request.stream))  # type: ignore[arg-type]
        assert int(request.headers["Content-Length"]) == len(bodies[-1])
        return httpx2.Response(202 if len(bodies) == 2 else 503, json=RUN)

    file = tmp_path / 'lines "1".jsonl'
    file.write_bytes(b'{"text": "one"}\n' * 40_000)
    make(answer).run(file, template="Say {text}.", tags=["a", "b"], reuse=False)
    assert bodies[0] == bodies[1]
    assert file.read_bytes() in bodies[0]
    assert b'name="tags"\r\n\r\n["a","b"]\r\n' in bodies[0]
    assert b'name="reuse"\r\n\r\nfalse\r\n' in bodies[0]
    assert b'filename="lines %221%22.jsonl"' in bodies[0]


FEW: list[Item] = ["one", {"prompt": "two"}]


def test_few_items_stand_in_the_request(make: Make) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        said = json.loads(request.content)
        assert said == {"items": ["one", {"prompt": "two"}], "name": "numbers"}
        return httpx2.Response(202, json=RUN)

    make(answer).run(iter(FEW), name="numbers")


def test_a_file_in_object_storage_is_named(make: Make) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        assert json.loads(request.content) == {"source_url": "s3://texts/a.jsonl"}
        return httpx2.Response(202, json=RUN)

    make(answer).runs.embed(source_url="s3://texts/a.jsonl")


@pytest.mark.parametrize(
    "items", ["one", b"one", {"prompt": "one"}], ids=["text", "bytes", "object"]
)
def test_one_item_is_no_list(make: Make, items: object) -> None:
    client = make(lambda request: httpx2.Response(500))
    with pytest.raises(TypeError, match="Items are a list"):
        client.run(items)  # type: ignore[arg-type]


def numbers(count: int) -> Iterator[Item]:
    for number in range(count):
        yield {"text": f"This is number {number}.", "custom_id": str(number), "note": "x" * 1000}


def test_many_items_are_a_file_on_the_way(client: Client) -> None:
    run = client.runs.embed(numbers(600), provider="local", name="many", tags=["many"])
    assert (run.total, run.name, run.tags) == (600, "many", ("many",))
    assert client.wait(run, timeout=120).checked().succeeded == 600
    last = list(client.runs.results(run, after=598))[-1]
    assert (last.custom_id, last.metadata) == ("599", {"note": "x" * 1000})


def test_prompts_in_a_file_are_those_of_the_list(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = client.run(["Say one.", "Say two."])
    monkeypatch.setattr("promptstack_client.sources.MOST_IN_MEMORY", 10)
    many = client.run(["Say one.", "Say two."], tags=["file"], stop=["never"], seed=1)
    answers = []
    for run in (few, many):
        client.wait(run, timeout=60).checked()
        answers.append([result.text for result in client.runs.results(run)])
    assert answers[0] == answers[1]


def test_a_file_is_a_run(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "reviews.csv.gz"
    file.write_bytes(gzip.compress(b'id,review\r\n7,It floats.\r\n8,"It, too."\r\n'))
    run = client.run(file, template="Summarise: {review}", text_column="review", id_column="id")
    client.wait(run, timeout=60).checked()
    results = list(client.runs.results(run))
    assert [result.custom_id for result in results] == ["7", "8"]
    assert "Summarise: It, too." in (results[1].text or "")


def test_a_run_is_checked_before_it_costs_anything(client: Client) -> None:
    before = [run.id for run in client.runs.list(limit=5).first().items]
    check = client.runs.check_generation(["one", "two", "two"], max_tokens=10)
    assert (check.items, check.bad) == (3, 0)
    assert check.tokens > 0
    embedding = client.runs.check_embedding(["one"], provider="local")
    assert embedding.model == client.runs.check_embedding(["two"], provider="local").model
    assert [run.id for run in client.runs.list(limit=5).first().items] == before


def test_a_run_that_is_done_has_nothing_to_go_on_with_and_is_deleted(client: Client) -> None:
    tag = str(uuid.uuid4())
    run = client.run(["Say it."], tags=[tag])
    client.wait(run, timeout=60).checked()
    for again in (client.runs.resume, client.runs.retry):
        with pytest.raises(Conflict):
            again(run)
    assert [found.id for found in client.runs.list(state="completed", tag=tag)] == [run.id]
    client.runs.delete(run)
    assert list(client.runs.list(tag=tag)) == []
