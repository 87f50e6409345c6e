"""Runs as callers see them."""

from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from promptstack.config.models_file import Money
from promptstack.repositories.run_models import Run, RunKind, RunState
from promptstack.services.sources.reading import BadInput


@dataclass(frozen=True)
class RunView:
    """A run."""

    id: UUID
    kind: RunKind
    state: RunState
    name: str
    collection_id: UUID
    tags: list[str]
    provider: str
    model: str
    total: int
    succeeded: int
    failed: int
    reused: int
    """Of those that succeeded: what had been paid for before."""
    calls: int
    tokens: int
    cost_usd: Money | None
    """Of the calls whose cost is known. None if that is nothing and other calls' isn't known."""
    unknown_cost: int
    """Calls whose cost is not known."""
    max_cost_usd: Money | None
    in_flight: int
    output_url: str | None
    output_written_at: datetime | None
    error_code: str | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, run: Run) -> "RunView":
        """Read it off the ledger's row."""
        own: dict[str, Any] = {
            "kind": RunKind(run.kind),
            "state": RunState(run.state),
            "tokens": run.input_tokens + run.output_tokens,
            "cost_usd": known_cost(run),
        }
        same = {one.name: getattr(run, one.name) for one in fields(cls) if one.name not in own}
        return cls(**own, **same)


def known_cost(run: Run) -> Decimal | None:
    """Return the cost of the calls of a run. None if only calls of unknown cost were made."""
    return None if run.unknown_cost and not run.cost_usd else run.cost_usd


@dataclass(frozen=True)
class Preflight:
    """What a run would do and cost, before anything is paid for."""

    run_id: UUID
    provider: str
    model: str
    items: int
    bad: int
    """Items that can't be asked for."""
    faults: list[BadInput]
    """The first of these."""
    duplicates: int
    """Of the bad ones, those with the id of an earlier one."""
    to_pay: int
    """Different contents that were not paid for yet."""
    reused: int
    """Items that cost nothing: their content was paid for, or comes twice."""
    tokens: int
    """Expected, input and output together."""
    cost_usd: Decimal | None
    """Expected. None if no price is known."""
    max_cost_usd: Decimal | None
    """The run's limit."""
    seconds: float | None
    """At the known limits. None if none is known."""

    @property
    def is_over_limit(self) -> bool:
        """Whether the run will probably reach its limit before it is done."""
        if self.cost_usd is None or self.max_cost_usd is None:
            return False
        return self.cost_usd > self.max_cost_usd
