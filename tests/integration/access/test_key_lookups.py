"""Keys of requests that come together are found by one statement, each for its own request."""

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import cast

import pytest

from promptstack.api.http.key_lookups import AT_ONCE, KeyLookups
from promptstack.repositories.access.presented_keys import PresentedKey
from promptstack.tasks.composition import PromptStack
from tests.processes import PATIENCE

ADA = "ada@example.org"


KEYS = {
    secret: cast("PresentedKey", object()) for secret in ("ps_1", "ps_2", "ps_slow", "ps_quick")
}


def test_requests_that_come_together_are_looked_up_together() -> None:
    asked: list[list[str]] = []

    def find(secrets: Sequence[str]) -> dict[str, PresentedKey]:
        asked.append(list(secrets))
        return {secret: KEYS[secret] for secret in secrets if secret in KEYS}

    async def ask() -> list[PresentedKey | None]:
        lookups = KeyLookups(find)
        return await asyncio.gather(*map(lookups.find, ["ps_1", "ps_unknown", "ps_2"]))

    assert asyncio.run(ask()) == [KEYS["ps_1"], None, KEYS["ps_2"]]
    assert asked == [["ps_1", "ps_unknown", "ps_2"]]


def test_each_request_hears_of_a_failure_and_the_next_is_looked_up_again() -> None:
    failures = [RuntimeError("the database is away")]

    def find(secrets: Sequence[str]) -> dict[str, PresentedKey]:
        if failures:
            raise failures.pop()
        return {secret: KEYS[secret] for secret in secrets if secret in KEYS}

    async def ask() -> None:
        lookups = KeyLookups(find)
        together = map(lookups.find, ["ps_1", "ps_2"])
        first, second = await asyncio.gather(*together, return_exceptions=True)
        assert (str(first), str(second)) == ("the database is away",) * 2
        assert await lookups.find("ps_1") is KEYS["ps_1"]

    asyncio.run(ask())


def test_a_slow_statement_and_a_request_that_is_gone_hold_up_no_other() -> None:
    began, may_go_on = threading.Event(), threading.Event()

    def find(secrets: Sequence[str]) -> dict[str, PresentedKey]:
        if "ps_slow" in secrets:
            began.set()
            assert may_go_on.wait(PATIENCE)
        return {secret: KEYS[secret] for secret in secrets if secret in KEYS}

    async def ask() -> None:
        lookups = KeyLookups(find)
        slow = asyncio.create_task(lookups.find("ps_slow"))
        gone = asyncio.create_task(lookups.find("ps_slow"))
        assert await asyncio.to_thread(began.wait, PATIENCE)
        gone.cancel()
        assert AT_ONCE > 1
        assert await asyncio.wait_for(lookups.find("ps_quick"), PATIENCE) is KEYS["ps_quick"]
        may_go_on.set()
        assert await asyncio.wait_for(slow, PATIENCE) is KEYS["ps_slow"]
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(ask())


def test_no_request_waits_for_look_ups_that_are_just_over() -> None:
    async def again(lookups: KeyLookups) -> None:
        await lookups.find("ps_1")
        await lookups.find("ps_1")

    async def ask() -> None:
        lookups = KeyLookups(lambda _: KEYS)
        for _ in range(20):
            both: list[asyncio.Task[object]] = []
            for one in (again(lookups), lookups.find("ps_2")):
                both.append(asyncio.create_task(one))
                for _ in range(5):  # until its look-up is in its thread
                    await asyncio.sleep(0)
            time.sleep(0.01)  # noqa: ASYNC251 - both look-ups end before the loop sees either
            await asyncio.wait_for(asyncio.gather(*both), 60)

    asyncio.run(ask())


def test_each_secret_finds_its_own_key_and_a_renewed_one_has_two(stack: PromptStack) -> None:
    first, other = (stack.keys.issue(ADA, {"name": name}) for name in ("first", "other"))
    renewed = stack.keys.rotate(first.key.id)
    found = stack.keys.find_presented(
        [other.secret, "ps_unknown", first.secret, renewed.secret, other.secret, "no key"]
    )
    assert {secret: key.id for secret, key in found.items()} == {
        first.secret: first.key.id,
        renewed.secret: first.key.id,
        other.secret: other.key.id,
    }
    assert stack.keys.find_presented(["no key"]) == {}
