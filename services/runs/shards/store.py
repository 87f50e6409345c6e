"""What a shard writes: one transaction for all that came since the last one."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, NamedTuple

from promptstack.config.errors import PromptStackError
from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.jobs.records import BeginStep, Claim, NewCall
from promptstack.repositories.models import AttemptState, Billing
from promptstack.repositories.run_models import Run, RunState
from promptstack.repositories.runs.items import OpenItem
from promptstack.repositories.runs.outcomes import Ended
from promptstack.repositories.runs.runs import Change
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.accounting.billing import credible, failed, taken
from promptstack.services.budgets.admission import begin_calls
from promptstack.services.execution.content_calls import Call, Content, reserve
from promptstack.services.runs.shards.batch import Batch, CommitResult, Leaving
from promptstack.services.runs.shards.budget import RunBudget
from promptstack.services.runs.shards.call_pool import CallAnswered, CallFailed, RecordedCall
from promptstack.services.runs.shards.decisions import ended_with
from promptstack.services.runs.shards.workload import Answer, Workload


class OpenItems(NamedTuple):
    """What is left to do in a shard."""

    contents: list[Content]
    total: int
    ended: int
    """Items that ended at once, as their contents have stored answers."""
    run: Run | None


class TakenOver(NamedTuple):
    """What became of contents that other attempts had reserved."""

    ours: list[Call]
    """Those that were given up, and are reserved for this shard now."""
    elsewhere: list[Call]
    """Those that are still reserved."""
    ended: int
    """Items whose contents have stored answers by now."""
    run: Run | None


class ShardStore:
    """Writes one shard's results. A write may run twice, so it changes nothing but the ledger."""

    def __init__(self, claim: Claim, run: Run, workload: Workload, budget: RunBudget) -> None:
        self._claim = claim
        self._run = run
        self._workload = workload
        self._budget = budget

    def find_open(self, unit: UnitOfWork) -> OpenItems:
        """Find what is open, and end the items whose contents have stored answers."""
        unit.steps.check_claim(self._claim)
        shard = self._claim.request
        contents = _contents_of(unit.items.open_in(self._run.id, shard["first"], shard["last"]))
        self._workload.note(contents)
        stored = self._workload.find_stored(unit, [content.hash for content in contents])
        total = sum(len(content.positions) for content in contents)
        ended, run = self._end_reused(unit, [Call(contents)], stored)
        left = [content for content in contents if content.hash not in stored]
        return OpenItems(left, total, ended, run)

    def take_over(self, unit: UnitOfWork, calls: Sequence[Call]) -> TakenOver:
        """See what other attempts have stored by now, and reserve what they have given up."""
        unit.steps.check_claim(self._claim)
        hashes = [hash_ for call in calls for hash_ in call.hashes]
        free = unit.reservations.take(self._claim, hashes)
        stored = self._workload.find_stored(unit, hashes)
        unit.reservations.release(self._claim, list(stored))
        ended, run = self._end_reused(unit, calls, stored)
        return TakenOver(
            _only(calls, free - stored), _only(calls, set(hashes) - free - stored), ended, run
        )

    def write(self, unit: UnitOfWork, batch: Batch, done: int, total: int) -> CommitResult:
        """Store one batch, and record the calls of it that are about to leave."""
        claim, result, is_capped = self._claim, CommitResult(), False
        try:
            is_capped = unit.steps.check_claim(claim)
        except ClaimLost:
            # Answers are paid for, so they are stored all the same.
            result.is_ours = False
        outcomes = self._store_answers(unit, batch.answered)
        outcomes += [end for decision in batch.decisions for end in decision.ends]
        change = self._settle_attempts(unit, batch)
        if result.is_ours:
            outcomes += self._begin(unit, batch, result, change, is_capped=is_capped)
            unit.items.note_tries(self._run.id, batch.tries)
            counted = unit.outcomes.end(self._run.id, outcomes)
            result.ended = counted.succeeded + counted.failed
            reserved = change.reserved_usd + result.reserved_usd
            change = replace(change, **vars(counted), reserved_usd=reserved)
            if result.ended:
                unit.steps.set_progress(claim, done + result.ended, total)
        else:
            result.unsent = batch.permitted
        # After `_begin` has reserved: see `ReservationRepository.release`.
        settled = [hash_ for one in batch.settled for hash_ in one.call.hashes]
        unit.reservations.release(claim, settled)
        run = result.run = unit.runs.change(self._run.id, change)
        if run is not None:
            # Also if nothing was about to begin: validation has to hurry then.
            is_same = run.started_at == self._run.started_at
            result.is_run_over |= run.state != RunState.RUNNING or not is_same
        return result

    def cut_off(
        self, unit: UnitOfWork, sent: Collection[RecordedCall], unsent: Collection[RecordedCall]
    ) -> None:
        """Record that calls were cut off; those that were never sent are surely not billed."""
        unit.attempts.settle_many(
            [
                {"attempt_id": id_, "state": AttemptState.CANCELLED}
                for id_ in sorted(one.attempt_id for one in sent)
            ]
        )
        new = unit.attempts.settle_many(
            [
                {
                    "attempt_id": one.attempt_id,
                    "state": AttemptState.CANCELLED,
                    "billing": Billing.NOT_BILLED,
                    "cost_usd": Decimal(0),
                }
                for one in unsent
            ]
        )
        freed = sum((one.reserved_usd for one in unsent if one.attempt_id in new), Decimal(0))
        unit.runs.change(self._run.id, Change(reserved_usd=-freed))

    def _end_reused(
        self, unit: UnitOfWork, calls: Sequence[Call], stored: Collection[bytes]
    ) -> tuple[int, Run | None]:
        """End the items whose contents have stored answers; returns how many, and the run."""
        counted = unit.outcomes.end(self._run.id, _reused(calls, stored))
        return counted.succeeded, unit.runs.change(self._run.id, Change(**vars(counted)))

    def _store_answers(self, unit: UnitOfWork, answered: Sequence[CallAnswered]) -> list[Ended]:
        """Store answers; returns the outcomes of their items."""
        if not answered:
            return []
        errors = self._workload.store(unit, [(one.recorded.call, one.answer) for one in answered])
        outcomes = []
        for call in (one.recorded.call for one in answered):
            outcomes += [
                Ended(position, is_reused=number > 0)
                for content in call.contents
                if content.hash not in errors
                for number, position in enumerate(content.positions)
            ]
            for hash_ in errors.keys() & set(call.hashes):
                outcomes += ended_with(call.only([hash_]), errors[hash_])
        return outcomes

    def _settle_attempts(self, unit: UnitOfWork, batch: Batch) -> Change:
        """Record what calls came to; returns what that adds to the run's sums."""
        succeeded = [
            {**self._taken(one.recorded, one.answer), "state": AttemptState.SUCCEEDED}
            for one in batch.answered
        ]
        failed_ = [self._failed(one) for one in batch.failed]
        # After a lost commit some are settled already: nothing is counted twice.
        new = unit.attempts.settle_many(succeeded) | unit.attempts.settle_many(failed_)
        reserved = {one.attempt_id: one.reserved_usd for one in batch.settled}
        rows = [row for row in (*succeeded, *failed_) if row["attempt_id"] in new]
        # A cost that may have been billed and is not known stays reserved: a limit is a limit.
        freed = [reserved[row["attempt_id"]] for row in rows if row["cost_usd"] is not None]
        return Change(
            calls=len(rows),
            input_tokens=sum(row["input_tokens"] or 0 for row in rows),
            output_tokens=sum(row["output_tokens"] or 0 for row in rows),
            cost_usd=sum((row["cost_usd"] or Decimal(0) for row in rows), Decimal(0)),
            unknown_cost=sum(row["cost_usd"] is None for row in rows),
            reserved_usd=-sum(freed, Decimal(0)),
            limiter_wait_seconds=sum(row["limiter_wait_seconds"] or 0.0 for row in rows),
        )

    def _failed(self, one: CallFailed) -> dict[str, Any]:
        if one.answer is None:
            workload = self._workload
            columns = failed(one.error, workload.provider, workload.model, workload.prices)
        else:
            columns = self._taken(one.recorded, one.answer)
        return {
            **columns,
            "attempt_id": one.recorded.attempt_id,
            "error_code": one.error.code,
            "error": str(one.error),
            "detail": one.error.detail,
            "state": AttemptState.FAILED,
        }

    def _taken(self, recorded: RecordedCall, answer: Answer) -> dict[str, Any]:
        workload = self._workload
        columns = taken(answer, workload.provider, workload.model, recorded.permit, workload.prices)
        return {"attempt_id": recorded.attempt_id, **columns}

    def _begin(
        self,
        unit: UnitOfWork,
        batch: Batch,
        result: CommitResult,
        settled: Change,
        *,
        is_capped: bool,
    ) -> list[Ended]:
        """Record calls that are about to leave; returns outcomes of items paid for meanwhile."""
        permitted = batch.permitted
        if not permitted:
            return []
        result.is_run_over = not unit.runs.is_on(self._run)
        if result.is_run_over or not batch.may_begin:
            result.unsent = permitted
            return []
        calls = [one.call for one in permitted]
        hashes = [hash_ for call in calls for hash_ in call.hashes]
        ours, stored = reserve(
            unit, self._claim, hashes, lambda taken: self._workload.find_stored(unit, taken)
        )
        result.reserved_elsewhere = _only(calls, set(hashes) - ours - stored)
        leaving = []
        for one in permitted:
            call = one.call.only(ours)
            if call.contents:
                leaving.append(Leaving(one, call))
            else:
                result.unsent.append(one)
        admitted = self._budget.admit(unit, leaving, settled, result, is_capped=is_capped)
        self._record(unit, admitted, result)
        return _reused(calls, stored)

    def _record(self, unit: UnitOfWork, leaving: Sequence[Leaving], result: CommitResult) -> None:
        if not leaving:
            return
        begun = begin_calls(unit, [self._begin_step(one) for one in leaving])
        refused: list[tuple[Leaving, PromptStackError]] = []
        for one in leaving:
            attempt = begun[self._claim.job_id, one.permitted.number]
            if isinstance(attempt, PromptStackError):
                refused.append((one, attempt))
                continue
            call = RecordedCall(
                one.call, one.permitted.permit, attempt.attempt_id, one.reserved_usd
            )
            result.recorded.append(call)
            result.reserved_usd += one.reserved_usd if attempt.is_new else Decimal(0)
        self._budget.refuse(unit, refused, result)

    def _begin_step(self, leaving: Leaving) -> BeginStep:
        need = self._workload.need(leaving.call)
        call = NewCall(
            leaving.permitted.number,
            self._claim.provider,
            self._claim.model,
            len(leaving.call.contents),
            expected_tokens=credible(need.input_tokens + need.output_tokens),
            expected_cost_usd=self._workload.cost(need.input_tokens, need.output_tokens),
            most_usd=lambda: self._workload.most_usd(leaving.call),
        )
        return BeginStep(self._claim, call)


def _only(calls: Sequence[Call], hashes: Collection[bytes]) -> list[Call]:
    """The calls with only these contents, without those that have none of them."""
    return [part for call in calls if (part := call.only(hashes)).contents]


def _reused(calls: Sequence[Call], stored: Collection[bytes]) -> list[Ended]:
    """The outcomes of items whose contents have stored answers."""
    return [
        Ended(position, is_reused=True)
        for call in _only(calls, stored)
        for position in call.positions
    ]


def _contents_of(items: Iterable[OpenItem]) -> list[Content]:
    """The distinct contents of items, in order."""
    by_hash: dict[bytes, list[OpenItem]] = {}
    for item in items:
        by_hash.setdefault(item.content_hash, []).append(item)
    return [
        Content(
            hash_,
            tuple(item.position for item in same),
            same[0].text or "",
            same[0].messages,
            max(item.tries for item in same),
            same[0].parameters,
        )
        for hash_, same in by_hash.items()
    ]
