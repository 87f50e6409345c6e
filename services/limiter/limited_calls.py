"""Provider calls under the limiter: a permit before, and what the call really took after."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from promptstack.services.errors import DeadlinePassed
from promptstack.services.limiter.limiter import Permit, RateLimiter
from promptstack.services.limiter.terms import Bucket, Limits, Need, Settlement
from promptstack.services.llm.answers import EmbeddingResponse, LLMResponse, Outcome
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.errors import ProviderError, ProviderTimeout
from promptstack.services.llm.headers import credible_wait
from promptstack.services.llm.listening import Listener

Answer = TypeVar("Answer", bound=LLMResponse | EmbeddingResponse)


class LimitedCalls:
    """Makes calls within the provider's limits."""

    def __init__(
        self,
        limiter: RateLimiter,
        *,
        timeout_seconds: float,
        most_wait_seconds: float = math.inf,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._limiter = limiter
        self._timeout_seconds = timeout_seconds
        self._most_wait_seconds = most_wait_seconds
        self._clock = clock

    @property
    def patience_seconds(self) -> float:
        """How long a call may wait for a permit in a worker."""
        return self._limiter.patience_seconds

    async def enter(self, service: LLMService, model: str, need: Need) -> Permit | None:
        """Wait for a permit to make a call; None if nothing limits it.

        Raises what `RateLimiter.acquire` raises, and `NotConfigured` if no call is possible.
        """
        service.check_configured()
        if not service.is_limited and self._limiter.settings_for(service.name, model) is None:
            return None
        return await self._limiter.acquire(_bucket(service, model), need)

    async def room(self, service: LLMService, model: str) -> int:
        """How many more calls than wait now could leave soon."""
        return await self._limiter.room(_bucket(service, model))

    async def limits(self, service: LLMService, model: str) -> Limits:
        """The known limits of a model."""
        return await self._limiter.limits(_bucket(service, model))

    async def make(
        self,
        provider: str,
        permit: Permit | None,
        call: Callable[[], Coroutine[Any, Any, Answer]],
        *,
        seconds_left: float = math.inf,
        is_suspect: bool = False,
        listener: Listener | None = None,
    ) -> Answer:
        """Make the call and settle its permit.

        The time-out of a call with a `listener` begins anew with each piece of its answer.

        A call that `is_suspect` holds a text that failed repeatedly. Its failure says nothing about
        the provider: otherwise one text could open the circuit for all others. Raises
        `ProviderError`, and `DeadlinePassed` if there is no answer in the job's `seconds_left`.
        """
        started = self._clock()
        settlement = Settlement(Outcome.CANCELLED)
        try:
            answer = await self._in_time(provider, call, seconds_left, listener)
            settlement = Settlement(
                Outcome.ANSWERED,
                latency_seconds=self._clock() - started,
                input_tokens=answer.input_tokens,
                output_tokens=getattr(answer, "output_tokens", 0),
                report=answer.limits,
            )
        except ProviderError as error:
            error.retry_after = self._sane(error.retry_after)
            # If the provider says what the call took, it has counted it.
            used, outcome = error.usage, error.outcome
            if is_suspect and outcome is Outcome.FAILED:
                outcome = Outcome.CANCELLED
            settlement = Settlement(
                outcome if used is None else Outcome.ANSWERED,
                latency_seconds=self._clock() - started,
                retry_after=error.retry_after,
                input_tokens=used.input_tokens if used else None,
                output_tokens=used.output_tokens if used else None,
                report=error.limits,
            )
            raise
        finally:
            if permit is not None:
                self._limiter.report(permit, settlement)
        return answer

    async def give_back(self, permit: Permit | None) -> None:
        """Give back the permit of a call that was not made."""
        if permit is not None:
            self._limiter.report(permit, Settlement(Outcome.UNUSED))

    def _sane(self, told: float | None) -> float | None:
        """How long to wait after a provider, or a gateway before it, has `told` us to."""
        wait = credible_wait(told)
        return None if wait is None else min(wait, self._most_wait_seconds)

    async def _in_time(
        self,
        provider: str,
        call: Callable[[], Coroutine[Any, Any, Answer]],
        seconds_left: float,
        listener: Listener | None,
    ) -> Answer:
        now = asyncio.get_running_loop().time
        deadline = now() + seconds_left
        try:
            async with asyncio.timeout(min(self._timeout_seconds, seconds_left)) as limit:
                if listener is not None:
                    listener.on_sign = lambda: _prolong(limit, self._timeout_seconds, deadline)
                return await call()
        except TimeoutError as error:
            if now() >= deadline:
                raise DeadlinePassed(
                    f"The job's deadline passed while {provider} was asked; the call is closed and "
                    "may still be billed."
                ) from error
            raise ProviderTimeout(
                f"{provider} did not answer within {self._timeout_seconds:g} s; the call may still "
                "be billed."
            ) from error


def _bucket(service: LLMService, model: str) -> Bucket:
    return Bucket(service.name, service.credential, model)


def _prolong(limit: asyncio.Timeout, seconds: float, deadline: float) -> None:
    """Let a time-out begin anew. One that has passed already can't."""
    if not limit.expired():
        limit.reschedule(min(asyncio.get_running_loop().time() + seconds, deadline))
