"""Usage and cost: what attempts record, and their sums."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from promptstack.api.http.app import create_app
from promptstack.config.models_file import ModelPrice
from promptstack.repositories.models import Attempt, JobKind
from promptstack.repositories.usage import Group, Usage
from promptstack.services.accounting.prices import Prices
from promptstack.services.errors import InvalidInput, NotFound
from promptstack.simulator.process import SimulatorProcess
from promptstack.tasks.worker_services import WorkerServices
from tests.http import make_admin_key
from tests.jobs import execute
from tests.simulators import ForkedSimulator

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def cost(prices: Prices, provider: str, model: str, **tokens: int | None) -> Decimal | None:
    given_tokens: dict[str, Any] = {"input_tokens": 1_000, "output_tokens": 100, **tokens}
    return prices.cost(provider, model, **given_tokens)


def test_known_models_have_their_price() -> None:
    """By the price lists: a million tokens in, out and cached, in dollars."""
    for provider, model, dollars in (
        ("openai", "gpt-5-mini", 0.25 * 600 + 0.025 * 400 + 2.0 * 100),
        ("anthropic", "claude-haiku-4-5", 1.0 * 600 + 0.10 * 400 + 5.0 * 100),
        ("gemini", "gemini-2.5-flash", 0.30 * 600 + 0.03 * 400 + 2.5 * 100),
    ):
        assert cost(Prices(), provider, model, cached_tokens=400) == pytest.approx(
            Decimal(str(dollars)) / 1_000_000
        )
    embedded = Prices().cost(
        "openai", "text-embedding-3-small", input_tokens=1_000_000, output_tokens=0
    )
    assert embedded == Decimal("0.02")


def test_what_nobody_knows_is_unknown_and_never_zero() -> None:
    prices = Prices()
    assert cost(prices, "openai", "a-model-of-ours") is None
    assert cost(prices, "ours", "gpt-5-mini") is None
    assert cost(prices, "my-openai", "gpt-5-mini") is None
    assert cost(prices, "openai", "whisper-1") is None
    dear = Prices([ModelPrice(provider="x", input_per_million=Decimal(1_000_000))])
    assert cost(dear, "x", "m", input_tokens=2**31 - 1) is None
    assert cost(prices, "openai", "gpt-5-mini", input_tokens=None) is None
    assert cost(prices, "openai", "gpt-5-mini", cached_tokens=2_000) is None
    assert cost(prices, "openai", "gpt-5-mini", output_tokens=-1) is None
    # What runs in this process is known to cost nothing.
    assert cost(prices, "demo", "demo-1") == 0


def test_a_price_that_a_person_sets_goes_first() -> None:
    ours = [
        ModelPrice(provider="openai", model="llama-*", input_per_million=Decimal(10)),
        ModelPrice(
            provider="openai",
            input_per_million=Decimal(1),
            output_per_million=Decimal(2),
            cached_input_per_million=Decimal("0.5"),
        ),
    ]
    prices = Prices(ours)
    assert cost(prices, "openai", "llama-4") == Decimal("0.01")
    assert cost(prices, "openai", "llama-4", cached_tokens=400) == Decimal("0.01")
    assert cost(prices, "openai", "gpt-5-mini", cached_tokens=400) == Decimal("0.001")
    assert cost(prices, "anthropic", "claude-haiku-4-5") == Decimal("0.0015")


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with ForkedSimulator() as running:
        yield running


@pytest.fixture
def worker(stack: WorkerServices, simulator: SimulatorProcess) -> Iterator[WorkerServices]:
    simulator.reset()
    told = {"openai_base_url": simulator.url, "openai_api_key": "sk-test"}
    with WorkerServices.open(type(stack.settings)(_env_file=None, **told)) as opened:  # type: ignore[arg-type]
        yield opened


def test_every_attempt_records_what_it_took(worker: WorkerServices) -> None:
    job = worker.jobs.enqueue_generation("Why?", system="[cached]" * 50, provider="openai")
    execute(worker, job.id)
    [attempt] = worker.jobs.get_attempts(job.id)
    assert (attempt.cached_tokens, attempt.input_tokens) == (100, 101)
    expected = (Decimal("0.25") * 1 + Decimal("0.025") * 100) / 1_000_000
    expected += Decimal(2) * (attempt.output_tokens or 0) / 1_000_000
    assert attempt.cost_usd == expected
    assert attempt.limiter_wait_seconds is not None
    assert attempt.limiter_wait_seconds < 5
    result = worker.jobs.get(job.id).result
    assert result is not None
    assert result["cached_tokens"] == 100


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"kind": "status", "status": 503}, Decimal(0)),
        ({"kind": "status", "status": 400}, Decimal(0)),
        ({"kind": "reset"}, None),
        ({"kind": "truncated"}, None),
    ],
    ids=["503", "400", "reset", "truncated"],
)
def test_a_failure_costs_nothing_or_nobody_knows(
    worker: WorkerServices,
    simulator: SimulatorProcess,
    fault: dict[str, Any],
    expected: Decimal | None,
) -> None:
    simulator.control(fault)
    job = worker.jobs.enqueue_generation("Why?", provider="openai", max_retries=0)
    execute(worker, job.id)
    [attempt] = worker.jobs.get_attempts(job.id)
    assert attempt.cost_usd == expected
    [total] = worker.usage.sums([])
    assert (total.calls, total.failed, total.unknown_cost) == (1, 1, int(expected is None))


def add(
    stack: WorkerServices,
    user_id: UUID | None = None,
    *,
    at: datetime = NOON,
    provider: str = "openai",
    model: str = "m",
    tokens: int = 10,
    dollars: Decimal | None = Decimal("0.5"),
) -> None:
    """A call that was answered."""
    with stack.ledger.transaction() as unit:
        job = unit.jobs.create(
            kind=JobKind.GENERATION,
            provider=provider,
            model=model,
            request={},
            request_hash="",
            user_id=user_id,
            max_retries=0,
            expires_at=NOON,
        )
        unit.session.add(
            Attempt(
                job_id=job.id,
                user_id=user_id,
                number=1,
                call=0,
                worker_id=job.id,
                provider=provider,
                model=model,
                state="succeeded",
                input_tokens=tokens,
                output_tokens=1,
                cost_usd=dollars,
                latency_seconds=1.0,
                started_at=at,
            )
        )


def user(stack: WorkerServices, email: str) -> UUID:
    with stack.ledger.transaction() as unit:
        return unit.users.create(email=email).id


def test_sums_by_day_are_in_utc_and_times_bound_them(stack: WorkerServices) -> None:
    midnight = NOON.replace(hour=0)
    for at in (midnight - timedelta(seconds=1), midnight, NOON, midnight + timedelta(days=1)):
        add(stack, at=at)
    rows = stack.usage.sums([Group.DAY])
    assert [(str(row.day), row.calls) for row in rows] == [
        ("2026-11-19", 1),
        ("2026-11-20", 2),
        ("2026-11-21", 1),
    ]
    [row] = stack.usage.sums([Group.DAY], since=midnight, until=midnight + timedelta(days=1))
    assert (row.calls, row.input_tokens, row.cost_usd) == (2, 20, Decimal(1))


def test_sums_never_hold_another_users_calls(stack: WorkerServices) -> None:
    ada, bob = user(stack, "ada@example.org"), user(stack, "bob@example.org")
    for owner, count in ((ada, 1), (bob, 2), (None, 4)):
        for _ in range(count):
            add(stack, owner)
    assert [row.calls for row in stack.usage.sums([], owner=ada)] == [1]
    assert [row.calls for row in stack.usage.sums([], email="bob@example.org")] == [2]
    by_user = {row.user: row.calls for row in stack.usage.sums([Group.USER])}
    assert by_user == {"ada@example.org": 1, "bob@example.org": 2, None: 4}
    for email in ("bob@example.org", "nobody@example.org"):
        with pytest.raises(NotFound):
            stack.usage.sums([], owner=ada, email=email)
    with pytest.raises(InvalidInput):
        stack.usage.sums([Group.DAY, Group.DAY])
    with pytest.raises(InvalidInput):
        stack.usage.sums([], since=NOON, until=NOON)


def test_the_http_door_shows_one_s_own(stack: WorkerServices) -> None:
    key = stack.keys.create("ada@example.org", "test")
    admin = make_admin_key(stack, "root@example.org")
    with stack.ledger.transaction() as unit:
        ada = unit.users.get_by_email("ada@example.org")
        assert ada is not None
    add(stack, ada.id, dollars=None)
    add(stack)
    with TestClient(create_app(stack)) as client:

        def ask(key: str, **query: object) -> Any:
            return client.get("/api/v1/usage", params=query, headers={"X-API-Key": key})  # type: ignore[arg-type]

        [mine] = ask(key, by="model").json()
        assert (mine["calls"], mine["unknown_cost"], mine["user"]) == (1, 1, None)
        assert sum(row["calls"] for row in ask(admin, owner="all").json()) == 2
        assert ask(admin).json() == []
        assert ask(admin, owner="ada@example.org").json()[0]["calls"] == 1
        assert ask(key, owner="root@example.org").status_code == 403
        assert ask(key, by="hour").status_code == 422
        assert client.get("/api/v1/usage").status_code == 401


CALLS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 3),
        st.sampled_from(["openai", "gemini"]),
        st.sampled_from(["a", "b"]),
        st.integers(0, 1_000),
        st.none() | st.decimals(0, 5, places=4),
    ),
    min_size=1,
    max_size=12,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(calls=CALLS, by=st.sets(st.sampled_from(list(Group)), min_size=1))
def test_the_sums_of_groups_add_up(
    stack: WorkerServices, calls: list[tuple[Any, ...]], by: set[Group]
) -> None:
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("TRUNCATE users CASCADE"))
        unit.session.execute(text("TRUNCATE jobs CASCADE"))
    users = [None, user(stack, "ada@example.org"), user(stack, "bob@example.org")]
    for whose, day, provider, model, tokens, dollars in calls:
        add(
            stack,
            users[whose],
            at=NOON + timedelta(days=day),
            provider=provider,
            model=model,
            tokens=tokens,
            dollars=dollars,
        )
    rows = stack.usage.sums(sorted(by))
    [total] = stack.usage.sums([])
    for name in ("calls", "failed", "input_tokens", "output_tokens", "cost_usd", "unknown_cost"):
        assert sum(getattr(row, name) or 0 for row in rows) == (getattr(total, name) or 0)
    assert total.calls == len(calls)
    keys = [tuple(getattr(row, group) for group in by) for row in rows]
    assert len(set(keys)) == len(keys)
    assert all(isinstance(row, Usage) for row in rows)
