"""A run is prepared: its source is read, checked and stored, and its cost is estimated."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any
from uuid import UUID

from promptstack.repositories.models import new_id
from promptstack.repositories.run_models import RunKind, RunState
from promptstack.repositories.session import Ledger
from promptstack.services.collections.lookup import place_of
from promptstack.services.errors import InvalidInput
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.runs.intake.estimates import Estimator, Weighed, check_bounded
from promptstack.services.runs.intake.ingest import (
    Intake,
    TooManyInputs,
    first_faults,
    only_askable,
    shown_as_read,
    take_in,
)
from promptstack.services.runs.intake.new_run import NewRun, RunDefaults, RunOptions
from promptstack.services.runs.intake.plans import RunPlan
from promptstack.services.runs.sizes import SizesAskedFor
from promptstack.services.runs.views import Preflight
from promptstack.services.sources.reading import BadInput, Input, Reading, Source
from promptstack.services.sources.records import Unfolded
from promptstack.services.validation.ids import check_signing_secret, check_user

DELETED_AT_ONCE = 50_000
NOTHING = "The source holds no records; there is nothing to do."


class EmptySource(InvalidInput):
    """The source has nothing to ask for."""

    code = "EMPTY_SOURCE"


class RunPreparation:
    """Makes runs that can be started. Nothing is paid for here."""

    def __init__(
        self,
        ledger: Ledger,
        factory: LLMServiceFactory,
        estimator: Estimator,
        defaults: RunDefaults,
    ) -> None:
        self._ledger = ledger
        self._factory = factory
        self._estimator = estimator
        self._defaults = defaults

    def prepare(self, source: Source, plan: RunPlan, *, is_counted: bool) -> Preflight:
        """Store the run and its items, and say what it comes to. Raises `InvalidInput`."""
        options = plan.options
        new, inputs = self._read(source, plan)
        run_id = self._add(new, options)
        try:
            with shown_as_read(self._ledger, run_id):
                intake = take_in(
                    self._ledger,
                    run_id,
                    inputs,
                    new.hash_of,
                    options.on_progress,
                    block_bytes=self._defaults.block_bytes,
                    total_bytes=options.total_bytes,
                    total_items=options.total_items,
                )
            _check_not_empty(intake)
            with self._ledger.transaction() as unit:
                duplicates = unit.outcomes.end_duplicates(run_id)
                if duplicates:
                    intake.faults = first_faults(unit, run_id)
            return self._estimator.estimate(
                run_id,
                new,
                intake,
                duplicates,
                max_cost_usd=options.max_cost_usd,
                is_counted=is_counted,
            )
        except BaseException:
            self.discard(run_id)
            raise

    def weigh(self, source: Source, plan: RunPlan) -> Weighed:
        """Read the source as `prepare` does, and say what it comes to; nothing is stored.

        Raises `InvalidInput`.
        """
        new, inputs = self._read(source, plan)
        most = plan.options.total_items
        found = self._estimator.weigh(new, inputs if most is None else islice(inputs, most + 1))
        if most is not None and found.inputs > most:
            raise TooManyInputs(f"The source has more than {most:,} inputs.")
        if not found.inputs:
            raise EmptySource(NOTHING)
        return found

    def _read(self, source: Source, plan: RunPlan) -> tuple[NewRun, Iterator[Input | BadInput]]:
        """What a run asks, and its inputs, checked as they are read."""
        # Imported here, as pyarrow takes 40 MB and workers don't read sources.
        from promptstack.services.sources.inputs import looked_at, read_inputs  # noqa: PLC0415

        options = plan.options
        opened, records = looked_at(source, self._bounded(options))
        new: NewRun = plan.lines.agree(records)
        del records  # it would keep all that is read from now on
        if options.webhook is not None:
            self._defaults.webhook_rules.check(options.webhook.url)
        if options.max_cost_usd is not None:
            self._estimator.check_limit(new.kind, new.provider, new.model, new.parameters)
        reading = self._reading(new, options)

        def unfold(record: dict[str, Any]) -> Unfolded:
            options.check_request(record)
            return plan.lines.unfold(record)

        is_limited = options.max_cost_usd is not None and new.kind == RunKind.GENERATION
        sizes = SizesAskedFor(self._ledger, new.provider, new.model)

        def check(one: Input) -> None:
            asked: NewRun = one.own or new
            asked.check(one)
            sizes.check(asked.parameters)
            if is_limited and asked is not new:
                check_bounded(asked.parameters)

        return new, only_askable(read_inputs(opened, reading, unfold), check)

    def discard(self, run_id: UUID) -> None:
        """Delete a run that was prepared and not started, and its items."""
        with self._ledger.transaction() as unit:
            run = unit.runs.lock(run_id)
            if run is None or run.state != RunState.PREPARING:
                return
            unit.runs.finish(run_id, RunState.CANCELLED, "DISCARDED", "It was never started.")
        deleted = DELETED_AT_ONCE
        while deleted == DELETED_AT_ONCE:
            with self._ledger.transaction() as unit:
                deleted = unit.items.delete_of(run_id, DELETED_AT_ONCE)
        with self._ledger.transaction() as unit:
            unit.runs.delete(unit.runs.lock(run_id) or run)

    def _bounded(self, options: RunOptions) -> Reading:
        """Bound what is read by the limits of this product."""
        bounds = replace(
            self._defaults.source_bounds,
            unpacked_bytes=options.unpacked_bytes,
            seconds=options.read_seconds,
            blank_lines=options.total_items,
        )
        return replace(options.reading, bounds=bounds)

    def _reading(self, new: NewRun, options: RunOptions) -> Reading:
        """Bound what is read by the limits of this product and of the model."""
        reading = self._bounded(options)
        service = self._factory.service_class(new.provider)
        stated = service.stated_limits(new.model)
        longest = stated.text_bytes if new.kind == RunKind.EMBEDDING else None
        limit = min(reading.max_bytes, self._defaults.max_text_bytes, longest or math.inf)
        return replace(
            reading,
            max_bytes=int(limit),
            text_tokens=stated.text_tokens,
            tokenizer=service.facts_of(new.model).tokenizer,
        )

    def _add(self, new: NewRun, options: RunOptions) -> UUID:
        defaults = self._defaults
        retries = options.max_retries
        with self._ledger.transaction() as unit:
            check_user(unit, options.user_id)
            collection_id = place_of(unit, options.collection, options.user_id)
            if options.webhook is not None:
                check_signing_secret(unit, options.user_id)
            return unit.runs.add(
                lifetime=options.expires_in or defaults.expires_seconds,
                id=options.run_id or new_id(),
                kind=new.kind,
                name=options.name,
                tags=list(options.tags),
                user_id=options.user_id,
                api_key_id=options.api_key_id,
                collection_id=collection_id,
                provider=new.provider,
                model=new.model,
                parameters=new.parameters,
                in_flight=options.in_flight or defaults.in_flight,
                max_retries=defaults.max_retries if retries is None else retries,
                max_cost_usd=options.max_cost_usd,
                output_url=options.output_url,
                webhook=options.webhook.url if options.webhook else None,
            ).id


def _check_not_empty(intake: Intake) -> None:
    if intake.items == 0:
        raise EmptySource(NOTHING)
