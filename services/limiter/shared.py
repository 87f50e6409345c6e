"""The limiter's state in Redis, for all workers: one script call a question."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis

from promptstack.config.limits import ModelLimits
from promptstack.config.names import LIMITER_KEY
from promptstack.services.limiter.script_calls import ScriptCalls
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

SCRIPT = "limiter.lua"
FLIGHT = 4
"""Which of a bucket's keys has the leases of the calls under way."""


class SharedBuckets:
    """Asks the script. Raises what redis-py raises when Redis is away."""

    def __init__(self, redis: "Redis", script: str | None = None) -> None:
        self._redis = redis
        self._script = ScriptCalls(redis, script or read_script())

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
        """Ask for a call to leave, all dimensions at once.

        `patience` and `lease` are in seconds: how long the caller would wait, and after which
        time a call in flight that nobody settled counts as ended.
        """
        member = _member(waiter, need)
        answer = await self._run(
            bucket,
            "acquire",
            settings,
            member,
            2 if need.is_bulk else 1,
            need.input_tokens,
            need.output_tokens,
            patience,
            lease,
            longest_sleep,
        )
        return _verdict(answer, member)

    async def room(self, bucket: Bucket, settings: ModelLimits, horizon: float) -> int:
        """How many calls more could leave within `horizon` seconds than wait already."""
        _, room = await self._run(bucket, "room", settings, horizon)
        return int(room)

    async def told(self, bucket: Bucket) -> Limits:
        """The limits that the provider's answers have told of."""
        fields = [f"told_{name}" for name in DIMENSIONS]
        found = await self._redis.hmget(_keys(bucket)[0], fields)
        return Limits(*(None if limit is None else float(limit) for limit in found))

    async def leave(self, bucket: Bucket, settings: ModelLimits, waiter: str, need: Need) -> None:
        """Ask no more."""
        await self._run(bucket, "leave", settings, _member(waiter, need))

    async def settle(
        self,
        bucket: Bucket,
        settings: ModelLimits,
        grant: Grant,
        need: Need,
        settlement: Settlement,
    ) -> bool:
        """Say what a granted call came to; whether a limit is known by that for the first time."""
        told = settlement.report.limits if settlement.report else {}
        states = [told.get(name) for name in DIMENSIONS]
        _, is_known_now = await self._run(
            bucket,
            "settle",
            settings,
            grant.waiter,
            str(settlement.outcome),
            settlement.latency_seconds,
            _or_none(settlement.retry_after),
            need.input_tokens,
            need.output_tokens,
            grant.charged_input,
            grant.charged_output,
            _or_none(settlement.input_tokens),
            _or_none(settlement.output_tokens),
            f"{grant.granted_at:.6f}",
            int(grant.is_probe),
            *grant.spent,
            *("" if state is None else state.limit for state in states),
            *("" if state is None else state.remaining for state in states),
        )
        return bool(int(is_known_now))

    async def renew(self, held: Sequence[tuple[Bucket, Grant]], lease: float) -> None:
        """Put off the end of these grants' leases to `lease` seconds from now."""
        if not held:
            return
        seconds, microseconds = await self._redis.time()
        until = int(seconds) + int(microseconds) / 1e6 + lease
        async with self._redis.pipeline(transaction=False) as pipeline:
            for bucket, grant in held:
                # XX: what was settled meanwhile stays so.
                pipeline.zadd(_keys(bucket)[FLIGHT], {grant.waiter: until}, xx=True)
            await pipeline.execute()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _run(
        self, bucket: Bucket, operation: str, settings: ModelLimits, *arguments: Any
    ) -> list[str]:
        limits = Limits.of(settings)
        answer: list[str] = await self._script.call(
            _keys(bucket),
            [
                operation,
                _or_none(limits.requests),
                _or_none(limits.tokens),
                _or_none(limits.input),
                _or_none(limits.output),
                _or_none(limits.in_flight),
                settings.burst_seconds,
                *arguments,
            ],
        )
        return answer


def read_script() -> str:
    """The source of the limiter."""
    return files("promptstack.services.limiter").joinpath(SCRIPT).read_text(encoding="utf-8")


def _keys(bucket: Bucket) -> list[str]:
    # The braces keep all keys of a credential on one node of a Redis cluster.
    credential = LIMITER_KEY.format(credential=f"{{{bucket.provider}:{bucket.credential}}}")
    base = f"{credential}:{bucket.model}"
    return [
        base,
        f"{base}:interactive",
        f"{base}:bulk",
        f"{base}:due",
        f"{base}:flight",
        credential,
    ]


def _member(waiter: str, need: Need) -> str:
    """The waiter with its tokens, so that whoever sweeps it away knows what it waited for."""
    return f"{waiter}:{need.input_tokens + need.output_tokens}"


def _verdict(answer: list[str], member: str) -> Verdict:
    match answer:
        case ["go", granted_at, charged_input, charged_output, is_probe, *rest]:
            return Grant(
                waiter=member,
                charged_input=float(charged_input),
                charged_output=float(charged_output),
                granted_at=float(granted_at),
                is_probe=bool(int(is_probe)),
                spent=tuple(rest[:4]),
                limits=Limits(*(float(limit) if limit != "" else None for limit in rest[4:])),
            )
        case ["wait", seconds, _]:
            return Wait(float(seconds))
        case ["later", seconds, why]:
            return Later(float(seconds), why)
        case ["open", seconds, _]:
            return Closed(float(seconds))
        case ["large", limit, dimension]:
            return TooLarge(float(limit), dimension)
        case _:
            return Spent()


def _or_none(number: float | None) -> float | str:
    return "" if number is None else number
