"""Provider calls of jobs: each with its row in the ledger, its permit, and those that stand in."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from promptstack.config.errors import PromptStackError
from promptstack.config.logging import log_unexpected
from promptstack.repositories.errors import TransientLedgerError
from promptstack.repositories.jobs.records import BeginStep, Claim, SucceedStep
from promptstack.repositories.models import AttemptState, Billing
from promptstack.repositories.session import UnitOfWork
from promptstack.services.accounting.billing import billing_of, credible, failed, taken
from promptstack.services.accounting.prices import Prices
from promptstack.services.errors import DeadlinePassed
from promptstack.services.execution.active_jobs import ActiveJob, ActiveJobs
from promptstack.services.execution.backoff import Backoff
from promptstack.services.execution.group_commit import GroupCommit, NotBatched
from promptstack.services.execution.results import JobResult
from promptstack.services.execution.retrying_ledger import RetryingLedger
from promptstack.services.limiter.limited_calls import LimitedCalls
from promptstack.services.limiter.limiter import Permit
from promptstack.services.limiter.terms import Need
from promptstack.services.llm.base import EmbeddingResponse, LLMResponse, LLMService
from promptstack.services.llm.errors import ConnectionFailed, RateLimited
from promptstack.services.llm.event_loop import EventLoop
from promptstack.services.llm.pool import ProviderPool

logger = logging.getLogger(__name__)

MAX_THROTTLED = 3
"""Times in a row that a call is sent anew after a 429 before its job goes back to the queue."""

Answer = TypeVar("Answer", LLMResponse, EmbeddingResponse)


class HeldJob(NamedTuple):
    """A job under its claim, in the hands of this process."""

    claim: Claim
    hold: ActiveJob


@dataclass(frozen=True)
class ProviderCall:
    """One question that a provider can answer."""

    provider: str
    model: str
    ask: Callable[[LLMService], Coroutine[Any, Any, Any]]
    need: Callable[[LLMService], Need]
    """What it will take, as far as is known before."""
    items: int = 1
    is_suspect: bool = False
    """Whether it holds a text that has failed again and again."""


class ProviderCalls:
    """Makes the calls of jobs."""

    def __init__(
        self,
        ledger: RetryingLedger,
        together: GroupCommit,
        providers: ProviderPool,
        running: ActiveJobs,
        *,
        loop: EventLoop,
        calls: LimitedCalls,
        prices: Prices,
        backoff: Backoff,
    ) -> None:
        self._ledger = ledger
        self._together = together
        self._providers = providers
        self._running = running
        self._loop = loop
        self._calls = calls
        self._prices = prices
        self._backoff = backoff

    def make(
        self,
        job: HeldJob,
        calls: Sequence[ProviderCall],
        keep: Callable[[UnitOfWork, Answer], None],
    ) -> Answer:
        """Make the first of `calls` that its provider answers now, and `keep` the answer.

        The answer is paid for, so it is kept whether or not the claim still holds: `keep` must
        not raise `ClaimLost`. Raises `ProviderError`, `ClaimLost`, and the limiter's errors.
        """
        met: list[PromptStackError] = []
        for call in calls:
            try:
                return self._make_in_turn(job, call, keep)
            except PromptStackError as error:
                if not (error.falls_back or error.is_wait):
                    raise
                met.append(error)
                if not error.falls_back:
                    break
                logger.warning("%s/%s does not answer: %s", call.provider, call.model, error.code)
        raise _deciding(met)

    def _make_in_turn(
        self,
        job: HeldJob,
        call: ProviderCall,
        keep: Callable[[UnitOfWork, Answer], None],
    ) -> Answer:
        """Make a call when the limiter lets it, and again when the provider knew better."""
        service = self._providers.get(call.provider)
        throttled, wait = 0, 0.0
        while True:
            entered = self._enter(job.hold, service, call.model, call.need(service), after=wait)
            permit = self._wait_for(job, entered)
            try:
                return self._make_once(job, call, service, permit, keep)
            except RateLimited as error:
                # It may be about this call alone: then the limiter would let it go at once.
                throttled += 1
                tries = throttled if error.retry_after is None else 1
                wait = self._backoff.delay(tries, error.retry_after)
                is_long = wait > self._calls.patience_seconds
                if permit is None or is_long or throttled == MAX_THROTTLED:
                    raise

    async def _enter(
        self, hold: ActiveJob, service: LLMService, model: str, need: Need, *, after: float
    ) -> Permit | None:
        """Wait for leave to make a call; it is given back where the job was cancelled by then."""
        await asyncio.sleep(after)
        task = asyncio.current_task()
        if task is not None:
            task.add_done_callback(partial(self._give_back_unheard, hold))
        return await self._calls.enter(service, model, need)

    def _give_back_unheard(self, hold: ActiveJob, task: "asyncio.Task[Permit | None]") -> None:
        """Give a permit back that came just when nobody waited for it any more.

        On the event loop, after whoever waits was told. Its lease would be renewed for ever.
        """
        is_unheard = hold.call is not None and hold.call.cancelled()
        if is_unheard and not task.cancelled() and task.exception() is None:
            self._loop.submit(self._calls.give_back(task.result()))

    def _make_once(
        self,
        job: HeldJob,
        call: ProviderCall,
        service: LLMService,
        permit: Permit | None,
        keep: Callable[[UnitOfWork, Answer], None],
    ) -> Answer:
        """Make one call with its attempt row around it."""
        number = job.hold.next_call()
        need = call.need(service)
        if job.hold.seconds_left() <= 0:
            self._loop.submit(self._calls.give_back(permit))
            raise DeadlinePassed("The job's deadline passed before its call was made.")

        try:
            attempt_id = self._begin(job, call, number, need)
        except BaseException:
            self._loop.submit(self._calls.give_back(permit))
            raise
        answered: list[Answer] = []

        async def ask() -> Answer:
            answered.append(await call.ask(service))
            return answered[0]

        try:
            self._wait_for(
                job,
                self._calls.make(
                    call.provider,
                    permit,
                    ask,
                    seconds_left=job.hold.seconds_left(),
                    is_suspect=call.is_suspect,
                ),
            )
        except CancelledError:
            # Where only the limiter was still to be told, the answer is there, and paid for.
            if not answered:
                self._ledger.write(
                    lambda unit: unit.attempts.settle(attempt_id, AttemptState.CANCELLED)
                )
                raise
        except PromptStackError as error:
            self._settle_attempt(attempt_id, error, self._lost(error, call))
            raise
        except Exception as error:
            known = bug(error)
            self._settle_attempt(attempt_id, known, self._lost(known, call))
            raise
        self._keep(job.claim, attempt_id, call, answered[0], keep, permit=permit)
        return answered[0]

    def _begin(self, job: HeldJob, call: ProviderCall, number: int, need: Need) -> int:
        """Record that a call is about to leave; the attempt's id. Raises `ClaimLost`."""
        values: dict[str, Any] = {
            "call": number,
            "provider": call.provider,
            "model": call.model,
            "items": call.items,
            "expected_tokens": credible(need.input_tokens + need.output_tokens),
            "expected_cost_usd": self._prices.cost(
                call.provider,
                call.model,
                input_tokens=need.input_tokens,
                output_tokens=need.output_tokens,
            ),
        }

        def check() -> None:
            self._running.check_may_begin(job.hold)

        def begin_alone(unit: UnitOfWork) -> int:
            check()
            unit.steps.check_claim(job.claim)
            return unit.attempts.start(job.claim, **values)

        try:
            return self._together.begin(BeginStep(job.claim, values), check)
        except NotBatched:
            return self._ledger.write(begin_alone)

    def _keep(
        self,
        claim: Claim,
        attempt_id: int,
        call: ProviderCall,
        answer: Answer,
        keep: Callable[[UnitOfWork, Answer], None],
        *,
        permit: Permit | None,
    ) -> None:
        took = taken(answer, call.provider, call.model, permit, self._prices)

        def store(unit: UnitOfWork) -> None:
            # The job's row before the attempt's, as everywhere: no two can wait for each other.
            keep(unit, answer)
            unit.attempts.settle(attempt_id, AttemptState.SUCCEEDED, **took)

        try:
            if isinstance(keep, JobResult) and isinstance(answer, LLMResponse):
                with suppress(NotBatched):
                    step = SucceedStep(claim, attempt_id, keep.read(answer), took)
                    keep.standing = self._together.succeed(step)
                    return
            self._ledger.write(store)
        except TransientLedgerError:
            raise
        except Exception as error:
            # What it cost is on record even where the answer can't be.
            known = error if isinstance(error, PromptStackError) else bug(error)
            self._settle_attempt(attempt_id, known, took)
            raise

    def _wait_for(self, job: HeldJob, work: Coroutine[Any, Any, Any]) -> Any:
        """Wait for what runs on the loop. Raises `CancelledError` if we cancel it."""
        try:
            return self._running.wait_for(job.hold, work)
        except CancelledError as error:
            if job.hold.is_cancelled:
                raise
            # From within the provider's own code: a failure of the call, which must count.
            raise ConnectionFailed(
                f"{job.claim.provider}'s client cancelled its own call."
            ) from error

    def _lost(self, error: PromptStackError, call: ProviderCall) -> dict[str, Any]:
        return failed(error, call.provider, call.model, self._prices)

    def _settle_attempt(
        self, attempt_id: int, error: PromptStackError, took: Mapping[str, Any]
    ) -> None:
        """Record a failure, with what the call `took`."""
        self._ledger.write(
            lambda unit: unit.attempts.settle(
                attempt_id,
                AttemptState.FAILED,
                error_code=error.code,
                error=str(error),
                detail=error.detail,
                **took,
            )
        )


def _deciding(met: Sequence[PromptStackError]) -> PromptStackError:
    """Of the errors of all providers that were asked, the one that decides what becomes of a job.

    What may have been billed uses up a retry, also where a fallback only has to wait: else the
    job would pay again and again. A fallback without quota ends no job that another may answer.
    """
    paid = [
        error
        for error in met
        if error.counts_as_failure and billing_of(error) is not Billing.NOT_BILLED
    ]
    transient = [error for error in met if error.transient]
    return ((paid if met[-1].is_wait else []) or transient or list(met))[-1]


def bug(error: Exception) -> PromptStackError:
    """Turn an error that nobody expected into one that may be shown.

    Its message may quote a prompt, so only its type and the way to it are logged.
    """
    log_unexpected(logger, "a job failed", error)
    return PromptStackError(
        f"The worker met an unexpected {type(error).__name__}; its log has the traceback."
    )
