"""What a run may hold in memory, in the server and in a worker, whatever it is handed in."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
from fastapi.testclient import TestClient

from promptstack.repositories.runs.items import ItemRepository, OpenItem
from promptstack.services.accounting.prices import Prices
from promptstack.services.runs.shards.embedding_workload import EmbeddingWorkload
from promptstack.services.runs.shards.generation_workload import GenerationWorkload
from promptstack.services.runs.shards.workload import Workload
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve
from tests.runs import in_ledger, work

RUNS = "/api/v1/runs/generations"
MUCH = 300_000_000


@pytest.fixture
def client(stack: WorkerServices) -> Iterator[TestClient]:
    with serve(stack) as client:
        yield client


@contextmanager
def bounded() -> Iterator[None]:
    """Refuse much memory at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MUCH, f"{peak:,} bytes"


def test_a_template_that_would_expand_to_gigabytes_is_refused_before_it_expands(
    stack: WorkerServices, client: TestClient
) -> None:
    body = {"items": [{"text": "x" * 100_000}] * 3, "template": "{text}" * 900, "provider": "demo"}
    with bounded():
        told = problem(client.post(RUNS, json=body), 422, "BAD_INPUTS")
    assert "filled in" in told["detail"]
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 0


@pytest.mark.parametrize(
    ("template", "setting"),
    [("{text}" * 1_001, "MAX_TEMPLATE_PLACES"), ("x" * 1_000_001, "MAX_TEMPLATE_BYTES")],
    ids=["many places", "long"],
)
def test_a_template_itself_is_bounded(client: TestClient, template: str, setting: str) -> None:
    told = problem(
        client.post(RUNS, json={"items": [{"text": "x"}], "template": template}),
        422,
        "INVALID_INPUT",
    )
    assert setting in told["detail"]


def test_all_that_a_template_makes_of_a_small_body_is_bounded(
    stack: WorkerServices, client: TestClient
) -> None:
    body = {
        "items": [{"text": "x" * 10_000}] * 100,
        "template": "{text}" * 900,
        "provider": "demo",
    }
    with bounded():
        told = problem(client.post(RUNS, json=body), 422, "INVALID_INPUT")
    assert "MAX_RENDERED_BYTES" in told["detail"]
    assert in_ledger(stack, "SELECT count(*) FROM items") == 0


def test_a_block_of_intake_is_bounded_in_bytes(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many long texts of a source that is read in little memory are held a few at a time."""
    real, blocks = ItemRepository.add, []

    def add(self: ItemRepository, run_id: Any, items: Any) -> None:
        blocks.append(sum(len(one.text or b"") for one in items))
        real(self, run_id, items)

    monkeypatch.setattr(ItemRepository, "add", add)
    texts = (f"{number} " + "x" * 3_000_000 for number in range(60))
    with bounded():
        stack.runs.generate(texts, provider="demo")
    assert sum(blocks) > 60 * 3_000_000
    assert max(blocks) <= stack.settings.run_block_bytes + 3_000_100


def test_a_shard_is_bounded_in_bytes(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many items it may have, a worker holds few long ones at once."""
    real, loaded = ItemRepository.open_in, []

    def open_in(self: ItemRepository, *which: Any) -> list[OpenItem]:
        found = real(self, *which)
        loaded.append(sum(len(one.text or "") for one in found))
        return found

    monkeypatch.setattr(ItemRepository, "open_in", open_in)
    texts: Callable[[], Iterator[Any]] = lambda: (  # noqa: E731
        f"{number} " + "x" * 5_000_000
        if number % 2
        else {"messages": [{"role": "user", "content": f"{number} " + "x" * 5_000_000}]}
        for number in range(12)
    )
    stack.heartbeat.beat()
    run = stack.runs.generate(texts(), provider="demo")
    with bounded():
        done = work(stack, run.id)
    assert (done.state, done.succeeded) == ("completed", 12)
    shards = in_ledger(stack, "SELECT count(*) FROM jobs WHERE kind = 'shard'")
    # Of messages, half of them, the text is empty here.
    assert max(loaded) <= stack.settings.shard_bytes
    assert 12 * 5_000_000 / stack.settings.shard_bytes <= shards <= 12


def test_a_worker_goes_through_texts_outside_of_its_transactions(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of a shard may take seconds, after which PostgreSQL ends a transaction."""
    open_then: list[tuple[str, int]] = []

    def seen(owner: type[Workload], name: str) -> None:
        real = getattr(owner, name)

        def look(self: Workload, *values: Any) -> Any:
            open_then.append((name, stack.ledger.engine.pool.checkedout()))  # type: ignore[attr-defined]
            return real(self, *values)

        monkeypatch.setattr(owner, name, look)

    for owner in (EmbeddingWorkload, GenerationWorkload):
        for name in ("calls", "_estimate", "_upper_bound"):
            seen(owner, name)
    monkeypatch.setattr(Prices, "cost", lambda *_, **__: Decimal("0.001"))
    stack.heartbeat.beat()
    limit = Decimal(5)
    for run in (
        stack.runs.embed([f"text {n}" for n in range(9)], max_cost_usd=limit),
        stack.runs.generate([f"{n}" for n in range(9)], max_cost_usd=limit, max_tokens=9),
    ):
        assert work(stack, run.id).succeeded == 9
    assert {name for name, _ in open_then} == {"calls", "_estimate", "_upper_bound"}
    assert {connections for _, connections in open_then} == {0}
