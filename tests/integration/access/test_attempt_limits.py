"""How often a password may be tried: by the script in Redis, and in each process without Redis."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis

from promptstack.services.access.attempt_limits import (
    ACCOUNT,
    ADDRESS,
    AttemptLimits,
)
from promptstack.services.access.errors import TooManyAttempts
from promptstack.services.access.rate_buckets import (
    LOCAL_SHARE,
    MOST_LOCAL,
    Allowance,
    LocalBuckets,
)
from promptstack.services.access.signing import SigningKeys
from promptstack.tasks.composition import PromptStack
from promptstack.tasks.connections import open_redis

KEYS = SigningKeys("attempts", ["a secret of the tests"])
HERE = "192.0.2.7"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def limits(redis: Redis, account: Allowance, address: Allowance = ADDRESS) -> AttemptLimits:
    return AttemptLimits(redis, KEYS, account=account, address=address)


def without_redis(clock: Callable[[], float]) -> AttemptLimits:
    """Nobody listens on this port."""
    return AttemptLimits(open_redis("redis://127.0.0.1:1/0"), KEYS, clock=clock)


def taken(
    limits: AttemptLimits, email: str = "ada@example.org", address: str = HERE, known: bool = False
) -> bool:
    try:
        limits.take(email, address, is_known=known)
    except TooManyAttempts:
        return False
    return True


def test_an_account_has_its_attempts_from_all_addresses_together(stack: PromptStack) -> None:
    some = limits(stack.redis, Allowance(3, 60))
    assert [taken(some, address=f"192.0.2.{number}") for number in range(5)] == [True] * 3 + [
        False
    ] * 2
    with pytest.raises(TooManyAttempts) as refused:
        some.take("ada@example.org", HERE, is_known=False)
    # It says when there is another one.
    assert 50 <= (refused.value.retry_after or 0) <= 60
    assert taken(some, email="eve@example.org")


def test_an_address_has_its_attempts_for_all_accounts_together(stack: PromptStack) -> None:
    some = limits(stack.redis, Allowance(100, 1), Allowance(4, 600))
    answers = [taken(some, email=f"{number}@example.org") for number in range(6)]
    assert answers == [True] * 4 + [False] * 2
    assert taken(some, address="192.0.2.8")


@pytest.mark.parametrize(
    ("first", "second", "is_one"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("192.0.2.1", "192.0.2.2", False),
    ],
)
def test_who_has_a_whole_network_has_one_address(
    stack: PromptStack, first: str, second: str, is_one: bool
) -> None:
    some = limits(stack.redis, Allowance(100, 1), Allowance(1, 600))
    assert taken(some, address=first)
    assert taken(some, address=second) is not is_one


def test_a_refused_attempt_takes_nothing(stack: PromptStack) -> None:
    some = limits(stack.redis, Allowance(1, 600), Allowance(3, 600))
    assert taken(some)
    assert not any(taken(some) for _ in range(10))
    # Of the address' three, one was used.
    assert [taken(some, email=f"{number}@example.org") for number in range(3)] == [
        True,
        True,
        False,
    ]


def test_of_many_at_once_none_slips_through(stack: PromptStack) -> None:
    some = limits(stack.redis, Allowance(5, 600))
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda _: taken(some), range(64))) == 5


def test_an_attempt_comes_back_with_time(stack: PromptStack) -> None:
    some = limits(stack.redis, Allowance(2, 0.2))
    results = [taken(some) for _ in range(3)]
    while not taken(some):  # a fifth of a second, and not longer than the test's own limit
        pass
    assert results[:2] == [True, True]


def test_who_succeeds_begins_anew_and_gives_the_address_back_one(stack: PromptStack) -> None:
    some = limits(stack.redis, Allowance(2, 600), Allowance(4, 600))
    assert taken(some)
    some.succeeded(some.take("ada@example.org", HERE, is_known=False))
    # One of the address is used up, for the wrong password.
    assert [taken(some), taken(some), taken(some)] == [True, True, False]
    assert [taken(some, email="eve@example.org"), taken(some, email="bob@example.org")] == [
        True,
        False,
    ]


def test_strangers_lock_nobody_out_at_a_known_address(stack: PromptStack) -> None:
    some = limits(stack.redis, Allowance(2, 600))
    for number in range(5):
        taken(some, address=f"198.51.100.{number}")
    assert not taken(some, address="203.0.113.1")
    assert taken(some, known=True)
    # Who guesses at that address has as few attempts as anywhere.
    assert [taken(some, known=True), taken(some, known=True)] == [True, False]


def test_redis_learns_no_address(stack: PromptStack) -> None:
    some = limits(stack.redis, Allowance(3, 60))
    assert taken(some)
    keys = [*stack.redis.scan_iter("promptstack:sign-in:*")]
    assert len(keys) == 2
    assert not any("ada" in key or HERE in key for key in keys)
    # They go by themselves, when the buckets are full again.
    assert all(0 < stack.redis.pttl(key) <= 60_000 for key in keys)


def test_without_redis_each_process_has_a_share(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    alone = without_redis(clock)
    share = ACCOUNT.attempts // LOCAL_SHARE
    assert [taken(alone) for _ in range(share + 1)] == [True] * share + [False]
    # It is no lock-out of others, and it ends.
    assert taken(alone, email="eve@example.org", address="192.0.2.8")
    clock.now += ACCOUNT.seconds_each * LOCAL_SHARE
    assert [taken(alone), taken(alone)] == [True, False]
    # One line says so, not one for each attempt.
    assert len([record for record in caplog.records if "Redis is away" in record.message]) == 1


def test_without_redis_an_address_has_a_share_too() -> None:
    alone = without_redis(Clock())
    answers = [taken(alone, email=f"{number}@example.org") for number in range(ADDRESS.attempts)]
    assert sum(answers) == ADDRESS.attempts // LOCAL_SHARE


def test_a_process_remembers_a_bounded_number_of_buckets() -> None:
    buckets = LocalBuckets(Clock())
    for number in range(MOST_LOCAL + 10):
        buckets.take({str(number): ACCOUNT})
    assert len(buckets._full_at) == MOST_LOCAL


def test_a_refusal_is_news_once_in_a_while() -> None:
    clock = Clock()
    alone = without_redis(clock)

    def is_news() -> bool:
        while taken(alone):
            pass
        with pytest.raises(TooManyAttempts) as refused:
            alone.take("ada@example.org", HERE, is_known=False)
        return refused.value.is_news

    # The first one was met by `taken`.
    assert [is_news(), is_news()] == [False, False]
    clock.now += 61
    with pytest.raises(TooManyAttempts) as refused:
        alone.take("ada@example.org", HERE, is_known=False)
    assert refused.value.is_news
