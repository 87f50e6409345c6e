"""The jobs of runs: a worker works on a shard, or finalizes a run."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from uuid import UUID

from promptstack.config.errors import PromptStackError
from promptstack.config.names import VectorType
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.errors import IndexNotBuilt
from promptstack.repositories.run_models import Run, RunKind, RunState
from promptstack.repositories.runs.runs import Change
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.repositories.vector_indexes import VectorIndexes
from promptstack.services.accounting.prices import Prices
from promptstack.services.errors import NotFound
from promptstack.services.execution.job_context import JobContext
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.pool import ProviderPool
from promptstack.services.notifications.run_ends import RunEnds
from promptstack.services.runs.outputs import RunOutputs
from promptstack.services.runs.progress import RunProgress
from promptstack.services.runs.scheduler import ShardScheduler
from promptstack.services.runs.shards.bisection import bisect_shard, is_suspect
from promptstack.services.runs.shards.embedding_workload import EmbeddingWorkload
from promptstack.services.runs.shards.generation_workload import GenerationWorkload
from promptstack.services.runs.shards.worker import ShardTools, ShardWorker
from promptstack.services.runs.shards.workload import Workload
from promptstack.services.validation.schema_bounds import SchemaBounds

logger = logging.getLogger(__name__)

INDEX_POLL_SECONDS = 0.5
OUTPUT_TRIES = 3
OUTPUT_NOT_WRITTEN = "OUTPUT_NOT_WRITTEN"


class RunWork:
    """Handles shards and finalizations."""

    def __init__(
        self,
        providers: ProviderPool,
        scheduler: ShardScheduler,
        progress: RunProgress,
        tools: ShardTools,
        run_ends: RunEnds,
        *,
        outputs: RunOutputs,
        indexes: VectorIndexes,
        prices: Prices,
        storage: VectorType,
        schema_bounds: SchemaBounds,
    ) -> None:
        self._providers = providers
        self._scheduler = scheduler
        self._progress = progress
        self._tools = tools
        self._run_ends = run_ends
        self._outputs = outputs
        self._indexes = indexes
        self._prices = prices
        self._storage = storage
        self._schema_bounds = schema_bounds

    def run_shard(self, job: JobContext) -> Mapping[str, object]:
        """Work on a shard. Returns what it did, in numbers."""
        run = self._run_of(job)
        counts: Mapping[str, object] = {}
        if run.state == RunState.RUNNING and not self._gives_up(job, run):
            service = self._providers.get(run.provider)
            workload = _workload_of(run, service, self._prices, self._storage, self._schema_bounds)
            workload.tier = job.claim.tier
            counts = ShardWorker(job, run, workload, self._tools).run()
        return counts

    def _gives_up(self, job: JobContext, run: Run) -> bool:
        """Bisect a shard whose workers keep dying. True if its last item has failed now."""
        if not is_suspect(job.claim):
            return False
        claim = job.claim
        add = self._scheduler.add_shard
        left = job.ledger.write(lambda unit: bisect_shard(unit, claim, run, add))
        job.claim = replace(claim, request={"first": left.first, "last": left.last})
        self._scheduler.publish(left.messages)
        if left.run is not None:
            self._progress.publish(left.run)
        return bool(left.failed)

    def finalize(self, job: JobContext) -> None:
        """Build the index of a run whose items have ended, and complete the run."""
        run = self._run_of(job)
        job.show()
        why: str | None = None
        if run.kind == RunKind.EMBEDDING:
            why = job.claim.request.get("without_index")
            if why is None:
                self._index(job, run)
        lost = None if run.output_url is None else self._write_output(job, run, run.output_url)
        ended = job.ledger.write(lambda unit: self._end(unit, job, run.id, why, lost))
        if ended is not None:
            self._progress.publish(ended)

    def _write_output(self, job: JobContext, run: Run, url: str) -> str | None:
        """Write the output to object storage. Returns why it could not be written."""

        def go_on() -> None:
            if job.handle.is_cancelled:
                job.handle.hand_back()

        while job.ledger.write(lambda unit: unit.runs.count_workers(run.id)):
            job.handle.pause(INDEX_POLL_SECONDS)  # calls under way still bring results
        try:
            self._outputs.write(run, url, go_on)
        except PromptStackError as error:
            if error.transient and job.claim.attempt < OUTPUT_TRIES:
                raise
            logger.error("the output of run %s is not written: %s", run.id, error)  # noqa: TRY400
            return f"{error} The results are kept: download them, or export them."
        return None

    def _end(
        self,
        unit: UnitOfWork,
        job: JobContext,
        run_id: UUID,
        without_index: str | None,
        without_output: str | None,
    ) -> Run | None:
        ended = _end(unit, job, run_id, without_index, without_output)
        if ended is not None and ended.state == RunState.COMPLETED:
            # Once for each end: another finalization of it finds the mail by its key.
            self._run_ends.tell(unit, ended)
        return ended

    def _index(self, job: JobContext, run: Run) -> None:
        def look(unit: UnitOfWork) -> tuple[EmbeddingModel | None, bool]:
            model = unit.embeddings.find_model(run.provider, run.model)
            return model, unit.scheduling.loads_vectors(run.provider, run.model, but=run.id)

        model, is_loaded = job.ledger.write(look)
        if model is None or is_loaded:
            return  # the last of several runs of the model builds it
        try:
            while not self._indexes.build(model, lambda: job.handle.is_cancelled):
                job.handle.pause(INDEX_POLL_SECONDS)
        except IndexNotBuilt as error:
            if job.handle.is_cancelled:
                job.handle.hand_back()
            logger.warning("run %s waits for its index: %s", run.id, error)
            raise

    def _run_of(self, job: JobContext) -> Run:
        run_id = job.claim.run_id
        run = None if run_id is None else job.ledger.write(lambda unit: unit.runs.get(run_id))
        if run is None:
            raise NotFound("The run was deleted before it was done.")
        return run


def _workload_of(
    run: Run, service: LLMService, prices: Prices, storage: VectorType, bounds: SchemaBounds
) -> Workload:
    """The workload of a run. Raises `InvalidInput` if its schema exceeds today's bounds."""
    if run.kind == RunKind.GENERATION:
        return GenerationWorkload(run, service, prices, bounds)
    return EmbeddingWorkload(run, service, prices, storage)


def _end(
    unit: UnitOfWork,
    job: JobContext,
    run_id: UUID,
    without_index: str | None,
    without_output: str | None,
) -> Run | None:
    """Complete the run, and correct its sums by its outcomes.

    `without_index` says why its model has no index, and `without_output` why its output is not
    written.
    """
    unit.steps.succeed(job.claim, {})
    run = unit.runs.lock(run_id)
    if run is not None and run.output_url is not None and without_output is None:
        unit.runs.note_output(run_id)
    if run is None or run.state != RunState.FINALIZING:
        return run
    if unit.items.next_slice(run_id, 0, 1) is not None:
        # No way to this is known, but a completed run must be done.
        logger.error("run %s has items without an outcome and goes on", run_id)
        return unit.runs.start(run_id)
    counted = unit.outcomes.count_outcomes(run_id)
    wrong = {
        name: value - getattr(run, name)
        for name, value in vars(counted).items()
        if value != getattr(run, name)
    }
    if wrong:
        logger.error("the sums of run %s were wrong by %s and are put right", run_id, wrong)
        unit.runs.change(run_id, Change(**wrong))
    if without_output is not None:
        return unit.runs.finish(run_id, RunState.COMPLETED, OUTPUT_NOT_WRITTEN, without_output)
    if without_index is None:
        return unit.runs.finish(run_id, RunState.COMPLETED)
    return unit.runs.finish(
        run_id,
        RunState.COMPLETED,
        IndexNotBuilt.code,
        f"{without_index} Its output is complete; searches compare all vectors, which takes "
        "longer, until a later run of the model builds the index.",
    )
