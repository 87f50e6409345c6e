"""Runs as people use them: hand one in, watch it, stop it, try its failures again, take its output.

Nothing is paid for before every input was read and checked, and `start` was said.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, Unpack
from uuid import UUID

from promptstack.repositories.content.vector_indexes import VectorIndexes
from promptstack.repositories.runs.models import Run, RunKind, RunState
from promptstack.repositories.runs.runs import Change
from promptstack.repositories.session import Ledger, UnitOfWork
from promptstack.services.accounting.prices import Prices
from promptstack.services.errors import InvalidInput, NotFound, WrongState
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.llm.parameters import GenerationParameters
from promptstack.services.runs.intake.estimates import Estimator, NewRun
from promptstack.services.runs.intake.ingest import (
    Intake,
    IntakeBounds,
    askable,
    first_faults,
    shown_as_read,
    take_in,
)
from promptstack.services.runs.intake.new_run import (
    GenerationRunKeywords,
    RunDefaults,
    RunKeywords,
    RunOptions,
)
from promptstack.services.runs.intake.plans import plan_embedding, plan_generation
from promptstack.services.runs.lifecycle import RunLifecycle
from promptstack.services.runs.progress import RunProgress
from promptstack.services.runs.views import Preflight, RunView
from promptstack.services.sources.batch_lines import BatchLines
from promptstack.services.sources.reading import Source
from promptstack.services.validation.bounds import checked_limit, refused_in_words
from promptstack.services.validation.ids import check_user, find_id, read_id, read_owner

POLL_SECONDS = 0.1
LARGE_LOAD = 0.2
"""Of a model's vectors: if so many more come, its index is built anew at the end instead of being
kept up. With 10% more that takes 2.5 times as long, with 20% 0.8 times, and half as long with as
many as there are (python -m benchmarks.index_load)."""
DELETED_AT_ONCE = 50_000


class BadInputs(InvalidInput):
    """Some inputs of a run can't be asked for; nothing was paid and nothing is kept."""

    code = "BAD_INPUTS"


class RunService:
    """Accepts runs and answers for them."""

    def __init__(
        self,
        ledger: Ledger,
        factory: LLMServiceFactory,
        lifecycle: RunLifecycle,
        progress: RunProgress,
        prices: Prices,
        *,
        estimator: Estimator,
        indexes: VectorIndexes,
        defaults: RunDefaults,
    ) -> None:
        self._ledger = ledger
        self._factory = factory
        self._lifecycle = lifecycle
        self._progress = progress
        self._prices = prices
        self._estimator = estimator
        self._indexes = indexes
        self._defaults = defaults

    def embed(
        self, source: Source, *, skip_bad: bool = False, **how: Unpack[RunKeywords]
    ) -> RunView:
        """Embed every text of `source`; see `prepare_embedding`. Returns when it is accepted.

        Raises `BadInputs` where some can't be, unless `skip_bad`: then those end as failed.
        """
        return self._accept(self.prepare_embedding(source, is_counted=False, **how), skip_bad)

    def generate(
        self, source: Source, *, skip_bad: bool = False, **how: Unpack[GenerationRunKeywords]
    ) -> RunView:
        """Ask for an answer to every prompt of `source`; see `prepare_generation` and `embed`."""
        return self._accept(self.prepare_generation(source, is_counted=False, **how), skip_bad)

    def prepare_embedding(
        self, source: Source, *, is_counted: bool = True, **how: Unpack[RunKeywords]
    ) -> Preflight:
        """Read and check the texts of `source`, and say what embedding them comes to.

        Requests as OpenAI's Batch API takes them are texts, too, and name the model. `is_counted`
        looks for what was paid for before. Call `start` or `discard` then. Raises `InvalidInput`.
        """
        rest: dict[str, Any] = {**how}
        provider = rest.pop("provider", None) or self._defaults.embedding_provider
        model = rest.pop("model", None)
        with refused_in_words():
            chosen = RunOptions(**rest)
        service = self._factory.offered(provider)

        def plan(asked: Mapping[str, Any]) -> NewRun:
            named = {"model": model or asked.get("model")}
            return plan_embedding(provider, service, named, chosen.user_id)

        lines = BatchLines(RunKind.EMBEDDING, plan)
        return self._prepare(lines, source, chosen, is_counted=is_counted)

    def prepare_generation(
        self, source: Source, *, is_counted: bool = True, **how: Unpack[GenerationRunKeywords]
    ) -> Preflight:
        """Read and check the prompts of `source`, and say what answering them comes to.

        Requests as OpenAI's Batch API takes them are prompts, too, and say how to answer, as far
        as nothing else is said here. See `prepare_embedding`.
        """
        rest: dict[str, Any] = {**how}
        provider = rest.pop("provider", None) or self._defaults.generation_provider
        reuse = rest.pop("reuse", True)
        options = {
            **(rest.pop("options", None) or {}),
            **(rest.pop("provider_options", None) or {}),
        }
        own = {name: rest.pop(name, None) for name in ("model", *GenerationParameters.model_fields)}
        said = {name: value for name, value in own.items() if value not in (None, [], ())}
        with refused_in_words():
            chosen = RunOptions(**rest)
        service = self._factory.offered(provider)

        def plan(asked: Mapping[str, Any]) -> NewRun:
            theirs = service.take_openai_options(asked.get("options", {}))
            whole = {**asked, **said, "options": {**theirs, **options}}
            bounds = self._defaults.request_bounds
            return plan_generation(
                provider, service, whole, chosen.user_id, bounds=bounds, reuse=reuse
            )

        lines = BatchLines(RunKind.GENERATION, plan)
        return self._prepare(lines, source, chosen, is_counted=is_counted)

    def start(self, run_id: UUID | str) -> RunView:
        """Let a run that was prepared be worked on. Raises `NotFound` and `WrongState`."""
        run_id = read_id(run_id, "run")
        with self._ledger.transaction() as unit:
            run = unit.runs.lock(run_id)
            if run is None:
                raise NotFound(f"There is no run {run_id}.")
            if run.state != RunState.PREPARING:
                raise WrongState(f"The run is {run.state}; only a prepared one can be started.")
            bad = unit.outcomes.count_outcomes(run_id).failed
            unit.runs.change(run_id, Change(failed=bad - run.failed))
            started = unit.runs.start(run_id)
            if started is None:
                raise NotFound(f"There is no run {run_id}.")
            self._make_room(unit, started)
        self._progress.publish(started)
        self._lifecycle.wake()
        return RunView.of(started)

    def discard(self, run_id: UUID | str) -> None:
        """Forget a run that was prepared and not started."""
        run_id = read_id(run_id, "run")
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

    def get(self, run_id: UUID | str, owner: UUID | None = None) -> RunView:
        """The run, fresh from the ledger. Raises `NotFound`, also for somebody else's."""
        return RunView.of(self._owned(run_id, owner))

    def find(self, given: str) -> UUID:
        """The id of the one run whose id begins so. Raises what `find_id` raises."""
        with self._ledger.transaction() as unit:
            return find_id(unit.runs, "run", given)

    def get_many(self, owner: UUID | None = None, limit: int = 20) -> list[RunView]:
        """The newest runs."""
        owner = read_owner(owner)
        filters: dict[str, Any] = {} if owner is None else {"user_id": owner}
        with self._ledger.transaction() as unit:
            runs = unit.runs.get_many(limit=checked_limit(limit), newest_first=True, **filters)
        return [RunView.of(run) for run in runs]

    def cancel(self, run_id: UUID | str, owner: UUID | None = None) -> RunView:
        """Stop a run; what it has produced is kept. Raises `NotFound` and `WrongState`."""
        run = self._owned(run_id, owner)
        if self._lifecycle.end(run.id, RunState.CANCELLED) is None:
            raise WrongState(f"The run has ended already: it is {run.state}.")
        return self.get(run_id)

    def retry(
        self, run_id: UUID | str, owner: UUID | None = None, max_cost_usd: Decimal | None = None
    ) -> RunView:
        """Try again what failed at a provider or was never tried. Raises `NotFound`, `WrongState`.

        What succeeded is neither asked nor paid for again; inputs that were bad stay so.
        """
        if max_cost_usd is not None:
            with refused_in_words():
                max_cost_usd = RunOptions(max_cost_usd=max_cost_usd).max_cost_usd
        run_id = self._owned(run_id, owner).id
        with self._ledger.transaction() as unit:
            run = unit.runs.lock(run_id)
            if run is None or not RunState(run.state).is_final:
                raise WrongState("The run goes on; it can be retried when it has ended.")
            if run.started_at is None:
                raise WrongState(
                    "The run was never started, so it may lack inputs; hand it in anew."
                )
            if max_cost_usd is not None:
                self._check_limit(run.kind, run.provider, run.model, run.parameters)
            reopened = unit.outcomes.reopen_failed(run_id)
            if not reopened and run.succeeded + run.failed >= run.total:
                raise WrongState("The run has nothing left to try: no item failed at a provider.")
            unit.runs.change(run_id, Change(failed=-reopened))
            limit = {} if max_cost_usd is None else {"max_cost_usd": max_cost_usd}
            started = unit.runs.start(run_id, lifetime=self._defaults.expires_seconds, **limit)
        if started is not None:
            self._progress.publish(started)
        self._lifecycle.wake()
        return self.get(run_id)

    def wait(self, run_id: UUID | str, timeout: float = math.inf) -> RunView:
        """Wait until the run has ended. Raises `TimeoutError` after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            run = self.get(run_id)
            if run.state.is_final:
                return run
            if time.monotonic() > deadline:
                raise TimeoutError(f"The run is {run.state} after {timeout:g} s.")
            time.sleep(POLL_SECONDS)

    def _prepare(
        self, lines: BatchLines, source: Source, options: RunOptions, *, is_counted: bool
    ) -> Preflight:
        # Here, as pyarrow takes 40 MB, and workers, which accept no runs, have no use for it.
        from promptstack.services.sources.inputs import looked_at, read_inputs  # noqa: PLC0415

        opened, records = looked_at(source, options.reading)
        new: NewRun = lines.agree(records)
        del records  # it would keep all that is read from now on
        self._check(new, options)
        defaults = self._defaults
        service = self._factory.service_class(new.provider)
        stated = service.stated_limits(new.model)
        longest = stated.text_bytes if new.kind == RunKind.EMBEDDING else None
        limit = min(options.reading.max_bytes, defaults.max_text_bytes, longest or math.inf)
        reading = replace(
            options.reading,
            max_bytes=int(limit),
            bounds=defaults.source_bounds,
            text_tokens=stated.text_tokens,
            tokenizer=service.facts_of(new.model).tokenizer,
        )
        inputs = askable(read_inputs(opened, reading, lines.unfold), new.check)
        retries = options.max_retries
        with self._ledger.transaction() as unit:
            check_user(unit, options.user_id)
            run_id = unit.runs.add(
                lifetime=options.expires_in or defaults.expires_seconds,
                kind=new.kind,
                name=options.name,
                user_id=options.user_id,
                provider=new.provider,
                model=new.model,
                parameters=new.parameters,
                in_flight=options.in_flight or defaults.in_flight,
                max_retries=defaults.max_retries if retries is None else retries,
                max_cost_usd=options.max_cost_usd,
            ).id
        try:
            with shown_as_read(self._ledger, run_id):
                bounds = IntakeBounds(defaults.block_bytes, options.total_bytes)
                intake = take_in(
                    self._ledger, run_id, inputs, new.hash_of, options.on_progress, bounds=bounds
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

    def _check(self, new: NewRun, options: RunOptions) -> None:
        if options.max_cost_usd is not None:
            self._check_limit(new.kind, new.provider, new.model, new.parameters)

    def _check_limit(
        self, kind: str, provider: str, model: str, parameters: Mapping[str, Any]
    ) -> None:
        """Raise `InvalidInput` where a limit of the cost could not be held."""
        if self._prices.cost(provider, model, input_tokens=1, output_tokens=1) is None:
            raise InvalidInput(
                f"The price of {provider}/{model} is not known, so no limit of the cost can be "
                "held; set it in MODELS_FILE."
            )
        if kind == RunKind.EMBEDDING:
            return
        if parameters.get("max_tokens") is None:
            raise InvalidInput("A limit of the cost needs max_tokens: without it none can be held.")
        if parameters.get("options"):
            raise InvalidInput(
                "A limit of the cost can't be held together with provider options, as they may "
                "change what a call takes; leave one of them out."
            )

    def _accept(self, preflight: Preflight, skip_bad: bool) -> RunView:
        if preflight.bad and not skip_bad:
            self.discard(preflight.run_id)
            raise BadInputs(explain_faults(preflight))
        return self.start(preflight.run_id)

    def _make_room(self, unit: UnitOfWork, run: Run) -> None:
        """Drop a model's index before many vectors come: it is built anew at the run's end.

        In the transaction of its start: from then on, its end brings the index back.
        """
        if run.kind != RunKind.EMBEDDING:
            return
        model = unit.embeddings.find_model(run.provider, run.model)
        if model is not None and run.total > LARGE_LOAD * unit.embeddings.estimate(model):
            self._indexes.drop(unit, model)

    def _owned(self, run_id: UUID | str, owner: UUID | None) -> Run:
        run_id = read_id(run_id, "run")
        with self._ledger.transaction() as unit:
            run = unit.runs.get(run_id)
        if run is None or (owner is not None and run.user_id != owner):
            raise NotFound(f"There is no run {run_id}.")
        return run


def _check_not_empty(intake: Intake) -> None:
    if intake.items == 0:
        raise InvalidInput("The source holds no records; there is nothing to do.")


def explain_faults(preflight: Preflight) -> str:
    """Say in one sentence what is wrong with the inputs of a run."""
    first = "; ".join(
        f"{fault.position}: {fault.reason.rstrip('.')}" for fault in preflight.faults[:3]
    )
    again = f" {preflight.duplicates} have an id that came before." if preflight.duplicates else ""
    return (
        f"{preflight.bad} of {preflight.items} inputs can't be asked for, and nothing was paid."
        f"{again} First: {first or 'see the ids'}. Mend them, or go on without them (skip_bad)."
    )
