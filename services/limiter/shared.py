"""The buckets that all workers share, in Redis: each question is one call of a script."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from uuid import UUID

import orjson
from redis.asyncio import Redis, RedisCluster

from promptstack.config.models_file import ModelLimits
from promptstack.config.names import LIMITER_KEY
from promptstack.config.setting_types import TierWeights
from promptstack.services.limiter.scripts import Place, ScriptCalls, read_scripts
from promptstack.services.limiter.terms import (
    DIMENSIONS,
    Bucket,
    Closed,
    Grant,
    Later,
    Limits,
    Need,
    Settlement,
    Spent,
    TooLarge,
    Verdict,
    Wait,
)
from promptstack.services.llm.answers import Outcome

NOBODY = UUID(int=0)
"""Stands for all calls without a user."""


class SharedBuckets:
    """Asks the scripts in Redis. Raises redis-py's errors when Redis is away."""

    def __init__(
        self,
        redis: "Redis | RedisCluster",
        scripts: Mapping[str, str] | None = None,
        *,
        weights: TierWeights | None = None,
    ) -> None:
        self._redis = redis
        self._weights = weights or TierWeights()
        self._scripts = ScriptCalls(redis, scripts or read_scripts())

    async def ask(
        self,
        bucket: Bucket,
        settings: ModelLimits,
        waiter: str,
        need: Need,
        *,
        patience: float,
        lease: float,
        longest_sleep: float,
    ) -> Verdict:
        """Ask whether a call may be sent; all limits are checked at once.

        All times are in seconds. The caller waits for `patience` at most, and a call that nobody
        settles or renews counts as ended after `lease`.
        """
        name = self._name(waiter, need)
        answer = await self._scripts.ask(
            _place(bucket, settings),
            {
                "act": "acquire",
                "waiter": name,
                "class": 2 if need.is_bulk else 1,
                "input": need.input_tokens,
                "output": need.output_tokens,
                "patience": patience,
                "lease": lease,
                "longest_sleep": longest_sleep,
            },
        )
        return _verdict(answer, name)

    async def room(self, bucket: Bucket, settings: ModelLimits, horizon: float) -> int:
        """How many more calls than already wait could be sent within `horizon` seconds."""
        words = {"act": "look", "horizon": horizon}
        room: int = await self._scripts.ask(_place(bucket, settings), words)
        return room

    async def told(self, bucket: Bucket) -> Limits:
        """The limits that the provider's answers have reported."""
        fields = [f"told_{name}" for name in DIMENSIONS]
        found = await self._redis.hmget(_keys(bucket)[0], fields)
        return Limits(*(None if limit is None else float(limit) for limit in found))

    async def leave(self, bucket: Bucket, settings: ModelLimits, waiter: str, need: Need) -> None:
        """Give up waiting."""
        words = {"act": "leave", "waiter": self._name(waiter, need)}
        await self._scripts.ask(_place(bucket, settings), words)

    async def settle(
        self,
        bucket: Bucket,
        settings: ModelLimits,
        grant: Grant,
        need: Need,
        settlement: Settlement,
    ) -> bool:
        """Report how a granted call ended. Returns whether this made the first limit known."""
        return bool(await self.report(bucket, settings, grant, need, settlement, at_once=True))

    def report(
        self,
        bucket: Bucket,
        settings: ModelLimits,
        grant: Grant,
        need: Need,
        settlement: Settlement,
        *,
        at_once: bool = False,
    ) -> "asyncio.Future[int]":
        """The same for one who does not wait; it leaves with the next question, or soon."""
        told = settlement.report.limits if settlement.report else {}
        used = {"input": settlement.input_tokens, "output": settlement.output_tokens}
        is_throttled = settlement.outcome is Outcome.THROTTLED
        words = {
            "act": "throttle" if is_throttled else "settle",
            "waiter": grant.waiter,
            "grant": orjson.Fragment(grant.charge),
            "outcome": settlement.outcome,
            "latency": settlement.latency_seconds,
            "retry_after": settlement.retry_after,
            "expected": {"input": need.input_tokens, "output": need.output_tokens},
            "used": _known(used),
            "told": {name: vars(state) for name, state in told.items()},
        }
        return self._scripts.ask(
            _place(bucket, settings), _known(words), at_once=at_once or is_throttled
        )

    async def renew(self, held: Iterable[tuple[Bucket, Grant]], lease: float) -> None:
        """Let the leases of these grants end `lease` seconds from now."""
        waiters: dict[Bucket, list[str]] = defaultdict(list)
        for bucket, grant in held:
            waiters[bucket].append(grant.waiter)
        await asyncio.gather(
            *(
                self._scripts.run("renew", [_flight_key(bucket)], [lease, *names])
                for bucket, names in waiters.items()
            )
        )

    def _name(self, waiter: str, need: Need) -> str:
        """As `lua/fair_queue.lua` reads it, so that a script that removes it knows what waited."""
        user, weight = need.user_id or NOBODY, self._weights.of(need.tier)
        return f"{waiter}:{user.hex}:{weight:g}:{need.input_tokens}:{need.output_tokens}"

    async def aclose(self) -> None:
        """Send what waits, and close the connections."""
        await self._scripts.drain()
        await self._redis.aclose()


@lru_cache(maxsize=10_000)
def _place(bucket: Bucket, settings: ModelLimits) -> Place:
    limits = _known(vars(Limits.of(settings)))
    given = {
        "in_flight": limits.pop("in_flight", None),
        "limits": limits,
        "burst": settings.burst_seconds,
    }
    return Place(tuple(_keys(bucket)), orjson.dumps(_known(given))[1:-1])


def _base(bucket: Bucket) -> tuple[str, str]:
    """The keys of a credential and of one of its models.

    The braces are a hash tag: it keeps all keys of a credential on one node of a Redis Cluster.
    """
    credential = LIMITER_KEY.format(credential=f"{{{bucket.provider}:{bucket.credential}}}")
    return credential, f"{credential}:{bucket.model}"


def _keys(bucket: Bucket) -> list[str]:
    """The keys in the order of `lua/bucket.lua`."""
    credential, base = _base(bucket)
    return [
        base,
        f"{base}:interactive",
        f"{base}:bulk",
        f"{base}:due",
        _flight_key(bucket),
        credential,
        f"{base}:interactive-users",
        f"{base}:bulk-users",
        f"{base}:away",
    ]


def _flight_key(bucket: Bucket) -> str:
    return f"{_base(bucket)[1]}:flight"


def _verdict(answer: list[str], waiter: str) -> Verdict:
    match answer:
        case ["go", charge, limits]:
            return Grant(waiter, _limits(limits), charge)
        case ["wait", seconds]:
            return Wait(float(seconds))
        case ["later", seconds, why]:
            return Later(float(seconds), why)
        case ["open", seconds, _]:
            return Closed(float(seconds))
        case ["large", limit, dimension]:
            return TooLarge(float(limit), dimension)
        case _:
            return Spent()


@lru_cache(maxsize=1_024)
def _limits(told: str) -> Limits:
    return Limits(**orjson.loads(told))


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is None: a script would take JSON's null for a value."""
    return {name: value for name, value in values.items() if value is not None}
