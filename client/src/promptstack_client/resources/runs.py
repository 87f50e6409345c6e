"""Runs: many items under one id."""

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from promptstack_client.calls import Asked
from promptstack_client.methods import AnySender, Composed, Resource, lists, sends
from promptstack_client.models.base import Id, id_of
from promptstack_client.models.runs import Failure, Result, Run
from promptstack_client.options import Dollars, GenerationRunOptions, RunListOptions, RunOptions
from promptstack_client.sending import Flow
from promptstack_client.waiting import until_ended

Item = str | Mapping[str, Any]


class Runs(Resource[AnySender]):
    """Batches of prompts or texts."""

    @sends("POST", "/runs/generations", Run)
    def generate(self, items: Iterable[Item], **options: Unpack[GenerationRunOptions]) -> Asked:
        """Start a run that answers each item: a prompt, or an object with one, or with messages."""
        return _asked({"items": list(items), **options})

    @sends("POST", "/runs/embeddings", Run)
    def embed(self, items: Iterable[Item], **options: Unpack[RunOptions]) -> Asked:
        """Start a run that embeds each item: a text, or an object with `text`."""
        return _asked({"items": list(items), **options})

    @sends("GET", "/runs/{run_id}", Run)
    def get(self, run: Run | Id) -> Asked:
        """Show a run."""
        return Asked({"run_id": id_of(run)})

    @Composed
    def wait(self, run: Run | Id, *, timeout: float | None = None) -> Flow[Run]:
        """Wait for the end of a run. Raises `WaitTimedOut` after so many seconds; it goes on."""
        return until_ended(Runs.get.call(self, run), timeout, f"The run {id_of(run)}")

    @lists("/runs", Run, "runs")
    def list(self, **options: Unpack[RunListOptions]) -> Asked:
        """List runs, the newest first."""
        return Asked(query=dict(options))

    @sends("POST", "/runs/{run_id}/cancel", Run, repeatable=True)
    def cancel(self, run: Run | Id) -> Asked:
        """Stop a run: no call begins any more; what is produced and under way is kept."""
        return Asked({"run_id": id_of(run)})

    @sends("POST", "/runs/{run_id}/retry", Run)
    def retry(self, run: Run | Id, *, max_cost_usd: Dollars | None = None) -> Asked:
        """Try again what failed or was never tried; what succeeded isn't paid for again."""
        return Asked({"run_id": id_of(run)}, body={"max_cost_usd": max_cost_usd})

    @lists("/runs/{run_id}/results", Result, "results")
    def results(
        self, run: Run | Id, *, limit: int | None = None, after: int | None = None
    ) -> Asked:
        """List what a run has produced so far, in the order of its items."""
        return Asked({"run_id": id_of(run)}, {"limit": limit, "after": after})

    @lists("/runs/{run_id}/failures", Failure, "failures")
    def failures(
        self, run: Run | Id, *, limit: int | None = None, after: int | None = None
    ) -> Asked:
        """List which items of a run have failed so far, and why."""
        return Asked({"run_id": id_of(run)}, {"limit": limit, "after": after})


def _asked(fields: dict[str, Any]) -> Asked:
    key = fields.pop("idempotency_key", None)
    return Asked(body=fields, idempotency_key=key)
