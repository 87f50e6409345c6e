"""What a run costs and how long it takes, estimated before anything is paid for."""

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

from promptstack.repositories.run_models import RunKind
from promptstack.repositories.runs.items import Unpaid
from promptstack.repositories.session import Ledger
from promptstack.services.accounting.prices import Prices
from promptstack.services.errors import InvalidInput
from promptstack.services.execution.generation import EXPECTED_OUTPUT_TOKENS
from promptstack.services.limiter.terms import Limits
from promptstack.services.llm.answers import BYTES_PER_TOKEN
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.runs.intake.ingest import Intake
from promptstack.services.runs.intake.new_run import NewRun
from promptstack.services.runs.sizes import models_of
from promptstack.services.runs.views import Preflight


class Estimator:
    """Counts what must be paid for, and estimates its cost and time."""

    def __init__(
        self,
        ledger: Ledger,
        factory: LLMServiceFactory,
        prices: Prices,
        limits_of: Callable[[str, str], Limits],
    ) -> None:
        """Take `limits_of`, which knows the limits a minute of a provider and model."""
        self._ledger = ledger
        self._factory = factory
        self._prices = prices
        self._limits_of = limits_of

    def estimate(
        self,
        run_id: UUID,
        new: NewRun,
        intake: Intake,
        duplicates: int,
        *,
        max_cost_usd: Decimal | None,
        is_counted: bool,
    ) -> Preflight:
        """Estimate a run. With `is_counted`, leave out contents that were paid for before."""
        good = intake.items - intake.bad - duplicates
        longest = new.parameters.get("max_tokens") or EXPECTED_OUTPUT_TOKENS
        unpaid = Unpaid(good, 0, good, good * longest)
        if is_counted:
            unpaid = self._unpaid(run_id, new, longest)
        to_pay = unpaid.contents
        system = len(str(new.parameters.get("system") or "")) * unpaid.as_run
        input_tokens = (unpaid.bytes + system) // BYTES_PER_TOKEN
        output_tokens = unpaid.output_tokens if new.kind == RunKind.GENERATION else 0
        return Preflight(
            run_id=run_id,
            provider=new.provider,
            model=new.model,
            items=intake.items,
            bad=intake.bad + duplicates,
            faults=intake.faults,
            duplicates=duplicates,
            to_pay=to_pay,
            reused=good - to_pay,
            tokens=input_tokens + output_tokens,
            cost_usd=self._prices.cost(
                new.provider, new.model, input_tokens=input_tokens, output_tokens=output_tokens
            ),
            max_cost_usd=max_cost_usd,
            seconds=self._seconds(new, to_pay, input_tokens, output_tokens) if is_counted else None,
        )

    def check_limit(
        self, kind: str, provider: str, model: str, parameters: Mapping[str, Any]
    ) -> None:
        """Raise `InvalidInput` if a limit of the cost could not be held."""
        if self._prices.cost(provider, model, input_tokens=1, output_tokens=1) is None:
            raise InvalidInput(
                f"The price of {provider}/{model} is not known, so no limit of the cost can be "
                "held; set it in MODELS_FILE."
            )
        if kind == RunKind.GENERATION:
            check_bounded(parameters)

    def _unpaid(self, run_id: UUID, new: NewRun, longest: int) -> Unpaid:
        with self._ledger.transaction() as unit:
            models = None
            if new.kind == RunKind.EMBEDDING:
                models = models_of(unit, run_id, (new.provider, new.model), new.parameters)
            return unit.items.unpaid(
                run_id,
                new.provider,
                new.model,
                models,
                longest=longest,
                own_longest=EXPECTED_OUTPUT_TOKENS,
            )

    def _seconds(
        self, new: NewRun, contents: int, input_tokens: int, output_tokens: int
    ) -> float | None:
        """Return the least time that the known limits allow. None if none is known."""
        limits = self._limits_of(new.provider, new.model)
        calls = contents
        if new.kind == RunKind.EMBEDDING:
            packing = self._factory.service_class(new.provider).stated_limits(new.model)
            by_size = input_tokens * BYTES_PER_TOKEN / packing.bytes
            calls = math.ceil(max(contents / packing.items, by_size))
        takes = (
            (calls, limits.requests),
            (input_tokens + output_tokens, limits.tokens),
            (input_tokens, limits.input),
            (output_tokens, limits.output),
        )
        known = [taken / limit * 60 for taken, limit in takes if limit]
        return max(known) if known else None


def check_bounded(parameters: Mapping[str, Any]) -> None:
    """Raise `InvalidInput` if nobody knows how much answers with these parameters cost at most."""
    if parameters.get("max_tokens") is None:
        raise InvalidInput("A limit of the cost needs max_tokens: without it none can be held.")
    if parameters.get("options"):
        raise InvalidInput(
            "A limit of the cost can't be held together with provider options, as they may "
            "change what a call takes; leave one of them out."
        )
