"""Takes in the files of batches: what they ask becomes a run, or they fail with their faults.

The run of a batch that was cancelled meanwhile, or whose window is over, ends as it starts: every
line is in an output, and nothing was asked.

A worker may die at any step. Whoever does the job again finds the run of the one before by the
batch's row: a run that was started is the batch's, and any other is deleted.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, cast
from uuid import UUID

from promptstack.repositories.batch_models import Batch, BatchDoor, BatchState
from promptstack.repositories.models import new_id
from promptstack.repositories.run_models import RunKind, RunState
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.access.key_terms import KeyLimits
from promptstack.services.batches.checks import RequestCheck, first_model
from promptstack.services.batches.faults import error_of, faults_of
from promptstack.services.batches.forms import LineForm, LineForms
from promptstack.services.batches.requests import CAPABILITIES, BatchBounds
from promptstack.services.batches.streams import BlockStream
from promptstack.services.batches.views import BatchError
from promptstack.services.errors import InvalidInput, NotFound, NotPermitted
from promptstack.services.execution.job_context import JobContext
from promptstack.services.files.service import FileService
from promptstack.services.llm.model_names import ModelNames
from promptstack.services.runs.feasibility import Finish, in_words
from promptstack.services.runs.intake.ingest import Intake, TooManyInputs
from promptstack.services.runs.intake.new_run import RunKeywords
from promptstack.services.runs.service import Beginning, RunService
from promptstack.services.runs.views import Preflight
from promptstack.services.sources.reading import Format, Reading, SourceBounds

READ_SECONDS = 86_400.0
"""How long the reading of a file may take. The run's own deadline is set when it is started."""


class BatchIntake:
    """Handles the jobs of batches."""

    def __init__(
        self,
        files: FileService,
        runs: RunService,
        models: ModelNames,
        *,
        forms: LineForms,
        bounds: BatchBounds,
        finish_of: Callable[[UUID], Finish | None] = lambda _: None,
    ) -> None:
        """Take `finish_of`, which says when a run could be done, where late batches are refused."""
        self._files = files
        self._runs = runs
        self._models = models
        self._forms = forms
        self._bounds = bounds
        self._finish_of = finish_of

    def run(self, job: JobContext) -> Mapping[str, object]:
        """Take in a batch's file; what came of it."""
        batch = job.ledger.write(lambda unit: self._begin(unit, job))
        if batch is None:
            return {"state": "ended or begun before"}
        form = self._forms[BatchDoor(batch.door)]
        try:
            found = self._prepare(job, batch, form)
        except (InvalidInput, NotFound, NotPermitted) as error:
            return self._fail(job, batch, [error_of(error)])
        if found.bad and not form.skips_bad:
            self._runs.discard(found.run_id)
            return self._fail(job, batch, faults_of(found))
        finish = self._finish_of(found.run_id)
        is_wanted = batch.cancelling_at is None
        if is_wanted and finish is not None and finish.at > batch.expires_at:
            self._runs.discard(found.run_id)
            return self._fail(job, batch, [_too_late(finish)])
        self._runs.start(found.run_id, record=lambda unit: self._start(unit, job, batch, found))
        return {"items": found.items}

    def _begin(self, unit: UnitOfWork, job: JobContext) -> Batch | None:
        """Choose the id of a new run; None where there is nothing to do any more."""
        unit.steps.check_claim(job.claim)
        batch_id = UUID(job.claim.request["batch_id"])
        batch = unit.batches.lock(batch_id)
        if batch is None or batch.state != BatchState.VALIDATING:
            return None
        if batch.run_id is not None:
            # Of somebody who began before and has lost the job.
            unit.after_commit(self._discard, batch.run_id)
        return unit.batches.change(batch_id, run_id=new_id())

    def _discard(self, run_ids: list[UUID]) -> None:
        for run_id in run_ids:
            self._runs.discard(run_id)

    def _prepare(self, job: JobContext, batch: Batch, form: LineForm) -> Preflight:
        kind = form.endpoints[batch.endpoint]
        asked = first_model(self._unpacked(batch))
        limits, left = job.ledger.write(lambda unit: (_limits_of(unit, batch), _left(unit, batch)))
        how: RunKeywords = {
            "name": f"{form.id_prefix}{batch.id.hex}",
            "run_id": batch.run_id,
            "user_id": batch.user_id,
            "api_key_id": batch.api_key_id,
            "key_limits": limits,
            "expires_in": max(left, 0) + READ_SECONDS,
            "reading": Reading(format=Format.JSONL),
            "total_items": self._bounds.lines,
            "unpacked_bytes": self._bounds.bytes,
            "check_request": RequestCheck(batch.endpoint, asked),
            "on_progress": _shown(job),
        }
        if asked is not None:
            # Another try of the intake must not ask another model of the alias.
            resolved = self._models.resolve(
                asked, CAPABILITIES[kind], key_limits=limits, same_for=str(batch.id)
            )
            how |= {"provider": resolved.provider, "model": resolved.model}
        source = self._source(batch)
        try:
            if kind is RunKind.EMBEDDING:
                return self._runs.prepare_embedding(source, is_counted=False, **how)
            return self._runs.prepare_generation(source, is_counted=False, **how)
        except TooManyInputs as error:
            raise TooManyInputs(
                f"The file has more than {self._bounds.lines:,} requests (MAX_BATCH_LINES); make "
                "several batches of it."
            ) from error

    def _source(self, batch: Batch) -> BinaryIO:
        stream = BlockStream(self._files.open(batch.input_file_id, batch.user_id))
        return cast("BinaryIO", stream)

    def _unpacked(self, batch: Batch) -> Iterator[bytes]:
        # Imported here, as pyarrow takes 40 MB and few workers take files in.
        from promptstack.services.sources.opening import Origin, byte_blocks  # noqa: PLC0415

        bounds = SourceBounds(unpacked_bytes=self._bounds.bytes)
        return byte_blocks(Origin(None, self._source(batch), bounds))

    def _start(
        self, unit: UnitOfWork, job: JobContext, batch: Batch, found: Preflight
    ) -> Beginning:
        """Note that the run is the batch's, in the transaction that starts it."""
        unit.steps.check_claim(job.claim)
        known = unit.batches.lock(batch.id) or batch
        form = self._forms[BatchDoor(batch.door)]
        outputs = {
            part: self._files.register_output(
                unit,
                batch_id=batch.id,
                part=part,
                filename=f"{form.id_prefix}{batch.id.hex}_{part}.jsonl",
                user_id=batch.user_id,
                api_key_id=batch.api_key_id,
            )
            for part in ("output", "errors")
        }
        unit.batches.change(
            batch.id,
            state=BatchState.IN_PROGRESS,
            model=found.model,
            in_progress_at=unit.now(),
            output_file_id=outputs["output"],
            error_file_id=outputs["errors"],
        )
        if known.cancelling_at is not None:
            return Beginning(ends_as=RunState.CANCELLED)
        left = _left(unit, batch)
        return Beginning(lifetime=left) if left > 0 else Beginning(ends_as=RunState.EXPIRED)

    def _fail(
        self, job: JobContext, batch: Batch, errors: list[BatchError]
    ) -> Mapping[str, object]:
        """End a batch whose file is not valid."""

        def write(unit: UnitOfWork) -> None:
            unit.steps.check_claim(job.claim)
            unit.batches.end(batch.id, BatchState.FAILED, errors=[vars(one) for one in errors])

        job.ledger.write(write)
        return {"errors": len(errors)}


def _limits_of(unit: UnitOfWork, batch: Batch) -> KeyLimits | None:
    key = None if batch.api_key_id is None else unit.api_keys.get(batch.api_key_id)
    return None if key is None else KeyLimits.of(key.providers, key.models)


def _left(unit: UnitOfWork, batch: Batch) -> float:
    return (batch.expires_at - unit.now()).total_seconds()


def _shown(job: JobContext) -> Callable[[Intake], None]:
    def show(intake: Intake) -> None:
        """Stop where the job was lost or cancelled meanwhile."""
        job.handle.check_may_begin()
        done = max(1, intake.items)
        job.ledger.write(lambda unit: unit.steps.set_progress(job.claim, done, done))
        job.show(done, done)

    return show


def _too_late(finish: Finish) -> BatchError:
    return BatchError(
        "window_too_short",
        "The known limits can't finish this batch in its window; it could be done at "
        f"{in_words(finish)}. Give it a longer completion_window.",
        param="completion_window",
    )
