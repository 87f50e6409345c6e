"""What a run costs and how long it takes, estimated before anything is paid for."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol
from uuid import UUID

from promptstack.repositories.run_models import RunKind
from promptstack.repositories.runs.items import Unpaid
from promptstack.repositories.runs.outcomes import DUPLICATE_ID
from promptstack.repositories.session import Ledger
from promptstack.services.accounting.prices import Prices
from promptstack.services.accounting.upper_bounds import may_raise_cost
from promptstack.services.errors import InvalidInput
from promptstack.services.execution.generation import EXPECTED_OUTPUT_TOKENS
from promptstack.services.limiter.terms import Limits
from promptstack.services.llm.answers import BYTES_PER_TOKEN
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.runs.intake.ingest import MAX_FAULTS, Intake
from promptstack.services.runs.intake.new_run import NewRun
from promptstack.services.runs.sizes import models_of
from promptstack.services.runs.views import Preflight
from promptstack.services.runs.work import Work, seconds_of
from promptstack.services.sources.reading import BadInput, Input
from promptstack.services.validation.json_text import dump_json


class Asking(Protocol):
    """A run as far as it says whom it asks: one that is new, or one of the ledger."""

    @property
    def kind(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def parameters(self) -> dict[str, Any]: ...


@dataclass
class Weighed:
    """What the inputs of a source come to, if each content is paid for once and none was before."""

    provider: str
    model: str
    inputs: int = 0
    bad: int = 0
    faults: list[BadInput] = field(default_factory=list)
    """The first bad inputs."""
    contents: int = 0
    """Different ones."""
    input_tokens: int = 0
    output_tokens: int = 0
    """At most, where they say how long answers may be."""
    cost_usd: Decimal | None = None
    """None where the price isn't known."""

    def add_fault(self, bad: BadInput) -> None:
        """Count a bad input."""
        self.bad += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(bad)


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
        unpaid = self._unpaid(run_id, new) if is_counted else _all_unpaid(new, good)
        to_pay, work = unpaid.contents, self._work(new, unpaid)
        input_tokens, output_tokens = int(work.input_tokens), int(work.output_tokens)
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
            seconds=seconds_of(work, self._limits_of(new.provider, new.model))
            if is_counted
            else None,
        )

    def weigh(self, new: NewRun, inputs: Iterable[Input | BadInput]) -> Weighed:
        """Estimate a run that is not stored."""
        found = Weighed(new.provider, new.model)
        ids: set[str] = set()
        hashes: set[bytes] = set()
        size = 0
        for one in inputs:
            found.inputs += 1
            if isinstance(one, BadInput):
                found.add_fault(one)
                continue
            if one.custom_id in ids:
                reason = "The same id came before."
                found.add_fault(BadInput(one.position, one.custom_id, DUPLICATE_ID, reason))
                continue
            ids.add(one.custom_id)
            asked: NewRun = one.own or new
            content_hash = asked.hash_of(one)
            if content_hash not in hashes:
                hashes.add(content_hash)
                size += _size(one) + len(str(asked.parameters.get("system") or "").encode())
                found.output_tokens += _longest(asked) if new.kind == RunKind.GENERATION else 0
        found.contents = len(hashes)
        found.input_tokens = size // BYTES_PER_TOKEN
        found.cost_usd = self._prices.cost(
            new.provider,
            new.model,
            input_tokens=found.input_tokens,
            output_tokens=found.output_tokens,
        )
        return found

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

    def work(self, run_id: UUID, new: Asking) -> Work:
        """Return what a run still has to ask, of what was not paid for before."""
        return self._work(new, self._unpaid(run_id, new))

    def work_of(
        self, kind: str, model: tuple[str, str], contents: int, tokens: tuple[float, float]
    ) -> Work:
        """Return the calls for so many contents.

        `model` is the provider and the model's name; `tokens` are those of input and output.
        """
        if kind == RunKind.GENERATION:
            return Work(contents, *tokens)
        provider, name = model
        packing = self._factory.service_class(provider).stated_limits(name)
        by_size = tokens[0] * BYTES_PER_TOKEN / packing.bytes
        return Work(math.ceil(max(contents / packing.items, by_size)), tokens[0])

    def _work(self, new: Asking, unpaid: Unpaid) -> Work:
        system = len(str(new.parameters.get("system") or "")) * unpaid.as_run
        tokens = ((unpaid.bytes + system) // BYTES_PER_TOKEN, unpaid.output_tokens)
        return self.work_of(new.kind, (new.provider, new.model), unpaid.contents, tokens)

    def _unpaid(self, run_id: UUID, new: Asking) -> Unpaid:
        with self._ledger.transaction() as unit:
            models = None
            if new.kind == RunKind.EMBEDDING:
                models = models_of(unit, run_id, (new.provider, new.model), new.parameters)
            return unit.items.unpaid(
                run_id,
                new.provider,
                new.model,
                models,
                longest=_longest(new),
                own_longest=EXPECTED_OUTPUT_TOKENS,
            )


def _size(one: Input) -> int:
    return len((one.text or "").encode()) + (len(dump_json(one.messages)) if one.messages else 0)


def _longest(new: Asking) -> int:
    return new.parameters.get("max_tokens") or EXPECTED_OUTPUT_TOKENS


def _all_unpaid(new: Asking, contents: int) -> Unpaid:
    """Return what there is to pay for if nobody has counted it."""
    return Unpaid(contents, 0, contents, contents * _longest(new))


def check_bounded(parameters: Mapping[str, Any]) -> None:
    """Raise `InvalidInput` if nobody knows how much answers with these parameters cost at most."""
    if parameters.get("max_tokens") is None:
        raise InvalidInput("A limit of the cost needs max_tokens: without it none can be held.")
    if may_raise_cost(parameters.get("options") or {}):
        raise InvalidInput(
            "A limit of the cost can't be held together with these provider options, as they may "
            "change what a call takes; leave one of them out."
        )
