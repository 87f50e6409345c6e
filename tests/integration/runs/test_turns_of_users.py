"""Users share the workers' places for shards: who gets the next one. No worker runs."""

from collections import Counter
from uuid import UUID

import pytest
from sqlalchemy import event, text

from promptstack.config.settings import Settings
from promptstack.services.sharing.turns import NOBODY
from promptstack.tasks.worker_services import WorkerServices
from tests.runs import prompts

ITEMS_A_SHARD = 20
"""Of a run with one call in flight."""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"worker_shards": 4, "worker_concurrency": 8})


def add_user(stack: WorkerServices, name: str, tier: str = "free") -> UUID:
    with stack.ledger.transaction() as unit:
        user = unit.users.create(email=f"{name}@example.com", tier=tier)
        return user.id


def hold_back(stack: WorkerServices) -> None:
    """Let no shard be given out before all runs are there."""
    stack.shard_scheduler._shards_a_worker = 0


def generate(
    stack: WorkerServices, user: UUID | None, items: int, expires_in: float | None = None
) -> UUID:
    return stack.runs.generate(
        prompts(items), provider="demo", in_flight=1, user_id=user, expires_in=expires_in
    ).id


def end_oldest(stack: WorkerServices, *, but: UUID = NOBODY) -> UUID | None:
    """End the working shard that came first, as a worker does. Returns whose it was."""
    with stack.ledger.transaction() as unit:
        user: UUID | None = unit.session.scalar(
            text(
                "UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE id = ("
                "SELECT id FROM jobs WHERE kind = 'shard' AND finished_at IS NULL "
                "AND user_id IS DISTINCT FROM :but ORDER BY id LIMIT 1) RETURNING user_id"
            ),
            {"but": but},
        )
    return user


def working(stack: WorkerServices) -> Counter[UUID | None]:
    with stack.ledger.transaction() as unit:
        return Counter({user: has.shards for user, has in unit.scheduling.working_shards().items()})


def serve(stack: WorkerServices, shards: int) -> list[UUID | None]:
    """Whose shards end, if each takes as long as any other."""
    stack.shard_scheduler._shards_a_worker = 4
    done = []
    for _ in range(shards):
        stack.shard_scheduler.give_out()
        if not working(stack):
            break
        done.append(end_oldest(stack))
    return done


def test_fifty_runs_of_a_user_have_half_of_the_shards_beside_one_run_of_another(
    stack: WorkerServices,
) -> None:
    many, single = add_user(stack, "many"), add_user(stack, "single")
    hold_back(stack)
    for _ in range(50):
        generate(stack, many, 40)
    generate(stack, single, 400)
    ended = serve(stack, 60)
    assert ended.count(single) == 400 / ITEMS_A_SHARD
    until = max(at for at, user in enumerate(ended) if user == single) + 1
    assert 0.4 <= ended.count(single) / until <= 0.6
    # And at any time until then: of every eight, four.
    assert all(2 <= ended[at : at + 8].count(single) <= 6 for at in range(until - 8))
    # Who is alone has all places.
    stack.shard_scheduler.give_out()
    assert working(stack) == {many: 4}


def test_a_user_has_shards_by_the_weight_of_their_tier(stack: WorkerServices) -> None:
    users = {tier: add_user(stack, tier, tier) for tier in ("free", "pro", "enterprise")}
    hold_back(stack)
    for user in users.values():
        for _ in range(3):
            generate(stack, user, 800)
    ended = Counter(serve(stack, 70))
    shares = [ended[user] / 70 for user in users.values()]
    assert shares == pytest.approx([1 / 7, 2 / 7, 4 / 7], abs=0.06)


def test_runs_without_a_user_are_those_of_one_user(stack: WorkerServices) -> None:
    user = add_user(stack, "one")
    hold_back(stack)
    for _ in range(5):
        generate(stack, None, 200)
    generate(stack, user, 400)
    ended = serve(stack, 20)
    assert 8 <= ended.count(user) <= 12


def test_a_user_whose_shards_take_long_holds_no_more_than_their_share(
    stack: WorkerServices,
) -> None:
    slow, quick = add_user(stack, "slow"), add_user(stack, "quick")
    hold_back(stack)
    generate(stack, slow, 400)
    generate(stack, quick, 4_000)
    stack.shard_scheduler._shards_a_worker = 4
    for _ in range(20):
        stack.shard_scheduler.give_out()
        assert working(stack) == {slow: 2, quick: 2}
        end_oldest(stack, but=slow)


def test_who_comes_later_gets_the_next_places(stack: WorkerServices) -> None:
    first, later = add_user(stack, "first"), add_user(stack, "later")
    hold_back(stack)
    for _ in range(10):
        generate(stack, first, 400)
    assert set(serve(stack, 30)) == {first}
    hold_back(stack)
    generate(stack, later, 400)
    serve(stack, 2)
    stack.shard_scheduler.give_out()
    assert working(stack) == {first: 2, later: 2}


def test_a_user_whose_runs_all_wait_leaves_the_places_to_others(stack: WorkerServices) -> None:
    waits, works = add_user(stack, "waits"), add_user(stack, "works")
    hold_back(stack)
    generate(stack, waits, 400)
    generate(stack, works, 400)
    serve(stack, 1)
    with stack.ledger.transaction() as unit:
        unit.session.execute(
            text(
                "UPDATE jobs SET not_before = now() + interval '1 h', "
                "error_code = 'RATE_LIMIT_WAIT' WHERE user_id = :user AND finished_at IS NULL"
            ),
            {"user": waits},
        )
    stack.shard_scheduler.give_out()
    assert working(stack) == {works: 4}


def test_users_whose_runs_all_wait_cost_no_statement_each(stack: WorkerServices) -> None:
    hold_back(stack)
    for number in range(12):
        generate(stack, add_user(stack, f"waits-{number}"), 40)
    stack.shard_scheduler._shards_a_worker = 12
    stack.shard_scheduler.give_out()
    assert sum(working(stack).values()) == 12
    with stack.ledger.transaction() as unit:
        unit.session.execute(
            text(
                "UPDATE jobs SET not_before = now() + interval '1 h', "
                "error_code = 'RATE_LIMIT_WAIT' WHERE kind = 'shard'"
            )
        )
    statements: list[str] = []

    def record(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(stack.ledger.engine, "before_cursor_execute", record)
    stack.shard_scheduler.give_out()
    event.remove(stack.ledger.engine, "before_cursor_execute", record)
    assert not working(stack)
    assert len(statements) < 10, statements
