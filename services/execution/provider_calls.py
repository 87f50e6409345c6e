"""The provider calls of jobs, each with a permit of the limiter and an attempt in the ledger.

All of it runs on the event loop. The job's own steps are never cut off: of a job that this worker
loses, only the wait for the limiter and the call itself are cancelled.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from promptstack.config.errors import PromptStackError
from promptstack.config.logging import log_unexpected
from promptstack.repositories.errors import TransientLedgerError
from promptstack.repositories.jobs.records import BeginStep, NewCall
from promptstack.repositories.models import AttemptState
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.accounting.billing import credible, cut_off, failed, taken
from promptstack.services.accounting.prices import Prices
from promptstack.services.accounting.upper_bounds import MostTokens, most_usd
from promptstack.services.errors import DeadlinePassed
from promptstack.services.execution.active_jobs import HandedBack
from promptstack.services.execution.backoff import Backoff
from promptstack.services.execution.group_commit import GroupCommit
from promptstack.services.execution.job_context import JobContext
from promptstack.services.execution.job_slots import JobSlots
from promptstack.services.execution.retrying_ledger import RetryingLedger
from promptstack.services.limiter.limited_calls import LimitedCalls
from promptstack.services.limiter.limiter import Permit
from promptstack.services.limiter.terms import Need
from promptstack.services.llm.answers import EmbeddingResponse, LLMResponse, Usage
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.errors import ConnectionFailed, RateLimited
from promptstack.services.llm.listening import Listener
from promptstack.services.llm.pool import ProviderPool

MAX_THROTTLED = 3
"""After so many 429s in a row the job goes back to the queue."""

T = TypeVar("T")
Answer = TypeVar("Answer", bound=LLMResponse | EmbeddingResponse)


@dataclass(frozen=True)
class ProviderCall(Generic[Answer]):
    """One question that a provider can answer."""

    provider: str
    model: str
    ask: Callable[[LLMService], Coroutine[Any, Any, Answer]]
    need: Callable[[LLMService], Need]
    """The tokens it is expected to take."""
    most: Callable[[], MostTokens | None] = lambda: None
    """The most it can take; asked only where a budget counts it."""
    items: int = 1
    is_suspect: bool = False
    """Whether it holds a text that failed repeatedly, so that its failure may be the text's."""
    listener: Listener | None = None
    """Who hears its answer while it comes."""

    def heard(self, need: Need) -> Usage | None:
        """What it took if it was cut off in its answer, as an estimate."""
        return None if self.listener is None else self.listener.usage(need.input_tokens)


@dataclass(frozen=True)
class CallOutcome(Generic[Answer]):
    """A call that was answered, and so is paid for. Its attempt is not settled yet."""

    answer: Answer
    attempt_id: int
    took: Mapping[str, Any]
    """Its tokens, cost and time, as the columns of its attempt."""

    def settle(self, unit: UnitOfWork) -> None:
        """Record what it took, in the transaction that stores its answer.

        Call it last: transactions lock a job's row before its attempts, so that no two of them wait
        for each other.
        """
        unit.attempts.settle(self.attempt_id, AttemptState.SUCCEEDED, **self.took)


class ProviderCalls:
    """Makes the calls of jobs."""

    def __init__(
        self,
        ledger: RetryingLedger,
        group: GroupCommit,
        providers: ProviderPool,
        *,
        calls: LimitedCalls,
        slots: JobSlots,
        prices: Prices,
        backoff: Backoff,
    ) -> None:
        self._ledger = ledger
        self._group = group
        self._providers = providers
        self._calls = calls
        self._slots = slots
        self._prices = prices
        self._backoff = backoff

    async def make(self, job: JobContext, call: ProviderCall[Answer]) -> CallOutcome[Answer]:
        """Make a call when the limiter permits it, and again after a 429 with a short wait.

        The caller stores the outcome even if the claim is lost, as it is paid for. Raises
        `ProviderError`, `ClaimLost`, and the errors of the limiter and of budgets.
        """
        service = await self._providers.get_async(call.provider)
        need = call.need(service)
        throttled, wait = 0, 0.0
        while True:
            permit = await self._run(job, self._enter(job, service, call.model, need, after=wait))
            try:
                try:
                    return await self._make_once(job, call, service, need, permit)
                finally:
                    self._slots.release()
            except RateLimited as error:
                # The limiter would permit it at once if the refusal is about this call only.
                throttled += 1
                tries = throttled if error.retry_after is None else 1
                wait = self._backoff.delay(tries, error.retry_after)
                is_long = wait > self._calls.patience_seconds
                if permit is None or is_long or throttled == MAX_THROTTLED:
                    raise

    async def _enter(
        self, job: JobContext, service: LLMService, model: str, need: Need, *, after: float
    ) -> Permit | None:
        """Wait for a slot, and in it for a permit. Raises `HandedBack` if no call may begin."""
        if after:
            await asyncio.sleep(after)
        job.handle.check_may_begin()
        await self._slots.acquire()
        try:
            job.handle.check_may_begin()
            return await self._calls.enter(service, model, need)
        except BaseException:
            self._slots.release()
            raise

    async def _make_once(
        self,
        job: JobContext,
        call: ProviderCall[Answer],
        service: LLMService,
        need: Need,
        permit: Permit | None,
    ) -> CallOutcome[Answer]:
        """Record the attempt, and make the call."""
        try:
            attempt_id = await self._begin(job, call, need)
        except BaseException:
            await self._calls.give_back(permit)
            raise
        try:
            answer = await self._ask(job, call, service, permit)
        except HandedBack:
            heard = call.heard(need)
            spent = cut_off(heard, call.provider, call.model, self._prices) if heard else {}
            await self._ledger.write_async(
                lambda unit: unit.attempts.settle(attempt_id, AttemptState.CANCELLED, **spent)
            )
            raise
        except Exception as error:
            shown = known(error)
            took = failed(shown, call.provider, call.model, self._prices, call.heard(need))
            await self._settle_failed(attempt_id, shown, took)
            raise
        took = taken(answer, call.provider, call.model, permit, self._prices)
        return CallOutcome(answer, attempt_id, took)

    async def _begin(self, job: JobContext, call: ProviderCall[Answer], need: Need) -> int:
        """Record that a call is about to leave. Returns the attempt's id.

        Raises `ClaimLost`, and the error of a budget that doesn't pay for it.
        """
        if job.handle.seconds_left() <= 0:
            raise DeadlinePassed("The job's deadline passed before its call was made.")
        expected = {"input_tokens": need.input_tokens, "output_tokens": need.output_tokens}
        new = NewCall(
            job.handle.next_call(),
            call.provider,
            call.model,
            call.items,
            expected_tokens=credible(need.input_tokens + need.output_tokens),
            expected_cost_usd=self._prices.cost(call.provider, call.model, **expected),
            most_usd=lambda: most_usd(self._prices, call.provider, call.model, call.most()),
        )
        return await self._group.begin(BeginStep(job.claim, new), job.handle.check_may_begin)

    async def _ask(
        self,
        job: JobContext,
        call: ProviderCall[Answer],
        service: LLMService,
        permit: Permit | None,
    ) -> Answer:
        """Make the call."""
        answered: list[Answer] = []

        async def ask() -> Answer:
            answered.append(await call.ask(service))
            return answered[0]

        has_begun = False

        async def make() -> Answer:
            nonlocal has_begun
            has_begun = True
            return await self._calls.make(
                call.provider,
                permit,
                ask,
                seconds_left=job.handle.seconds_left(),
                is_suspect=call.is_suspect,
                listener=call.listener,
            )

        try:
            return await self._run(job, make())
        except HandedBack:
            # If only the limiter was still to be told, the answer is here, and paid for.
            if answered:
                return answered[0]
            if not has_begun:
                await self._calls.give_back(permit)
            raise

    async def _run(self, job: JobContext, work: Coroutine[Any, Any, T]) -> T:
        """Do `work`, which this worker may cancel. Raises `HandedBack` then."""
        try:
            return await job.handle.run(work)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the event loop closes
            # The provider's client has cancelled it: the call has failed, and must count.
            raise ConnectionFailed(
                f"{job.claim.provider}'s client cancelled its own call."
            ) from error

    async def store(self, call: CallOutcome[Answer], write: Callable[[UnitOfWork], T]) -> T:
        """Run `write`, which stores the answer, and settle the call in the same transaction."""

        def store(unit: UnitOfWork) -> T:
            written = write(unit)
            call.settle(unit)
            return written

        async with self.cost_on_record(call):
            return await self._ledger.write_async(store)

    @asynccontextmanager
    async def cost_on_record(self, call: CallOutcome[Answer]) -> AsyncIterator[None]:
        """Store an answer in this context: if that fails, what its call took is recorded anyway."""
        try:
            yield
        except TransientLedgerError:
            raise
        except Exception as error:
            await self._settle_failed(call.attempt_id, known(error), call.took)
            raise

    async def _settle_failed(
        self, attempt_id: int, error: PromptStackError, took: Mapping[str, Any]
    ) -> None:
        """Record that a call failed, with what it took."""
        failure = {"error_code": error.code, "error": str(error), "detail": error.detail, **took}
        await self._ledger.write_async(
            lambda unit: unit.attempts.settle(attempt_id, AttemptState.FAILED, **failure)
        )


logger = logging.getLogger(__name__)


def known(error: Exception) -> PromptStackError:
    """The error itself, or one that may be shown in place of an unexpected one.

    The message of an unexpected error may quote a prompt, so only its type and traceback are
    logged.
    """
    if isinstance(error, PromptStackError):
        return error
    log_unexpected(logger, "a job failed", error)
    return PromptStackError(
        f"The worker met an unexpected {type(error).__name__}; its log has the traceback."
    )
