"""Runs: many items under one id."""

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from promptstack_client.calls import Asked, Route
from promptstack_client.downloads import DownloadFeed
from promptstack_client.events import RUN_ROUTE, EventFeed
from promptstack_client.feeds import Feed
from promptstack_client.methods import (
    AnySender,
    Collected,
    Composed,
    Resource,
    Streamed,
    lists,
    sends,
)
from promptstack_client.models.base import Id, id_of
from promptstack_client.models.events import RUN_EVENTS, RunEvent
from promptstack_client.models.runs import Download, Failure, Result, Run, RunCheck
from promptstack_client.options import (
    Dollars,
    EmbeddingRunOptions,
    FileOptions,
    GenerationRunOptions,
    ResultFileOptions,
    RunListOptions,
)
from promptstack_client.sending import Flow
from promptstack_client.sources import Items, body_of
from promptstack_client.waiting import held, until_ended

RESULTS: Route[None] = Route("GET", "/runs/{run_id}/results/{format}", None)
FAILURES: Route[None] = Route("GET", "/runs/{run_id}/failures/{format}", None)


class Runs(Resource[AnySender]):
    """Batches of prompts or texts."""

    @sends("POST", "/runs/generations", Run, keyed=True)
    def generate(
        self, items: Items | None = None, **options: Unpack[GenerationRunOptions]
    ) -> Asked:
        """Start a run that answers each item: a prompt, or an object with one, or with messages.

        The items are a list, anything to go through, or the `Path` of a file; many are sent as a
        file, and never are all in memory. None are given with a `source_url`.
        """
        return _asked(items, options)

    @sends("POST", "/runs/embeddings", Run, keyed=True)
    def embed(self, items: Items | None = None, **options: Unpack[EmbeddingRunOptions]) -> Asked:
        """Start a run that embeds each item: a text, or an object with `text`; see `generate`."""
        return _asked(items, options)

    @sends("POST", "/runs/generations", RunCheck, keyed=True)
    def check_generation(
        self, items: Items | None = None, **options: Unpack[GenerationRunOptions]
    ) -> Asked:
        """Say what such a run would do and cost, and keep nothing of it."""
        return _checked(items, options)

    @sends("POST", "/runs/embeddings", RunCheck, keyed=True)
    def check_embedding(
        self, items: Items | None = None, **options: Unpack[EmbeddingRunOptions]
    ) -> Asked:
        """Say what such a run would do and cost, and keep nothing of it."""
        return _checked(items, options)

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
        return Asked(query=options)

    @sends("POST", "/runs/{run_id}/cancel", Run, repeatable=True)
    def cancel(self, run: Run | Id) -> Asked:
        """Stop a run: no call begins any more; what is produced and under way is kept."""
        return Asked({"run_id": id_of(run)})

    @sends("POST", "/runs/{run_id}/retry", Run)
    def retry(self, run: Run | Id, *, max_cost_usd: Dollars | None = None) -> Asked:
        """Try again what failed or was never tried; what succeeded isn't paid for again."""
        return Asked({"run_id": id_of(run)}, body={"max_cost_usd": max_cost_usd})

    @sends("POST", "/runs/{run_id}/resume", Run)
    def resume(self, run: Run | Id, *, max_cost_usd: Dollars | None = None) -> Asked:
        """Go on with a run that ended before all was tried; what failed stays failed."""
        return Asked({"run_id": id_of(run)}, body={"max_cost_usd": max_cost_usd})

    @sends("DELETE", "/runs/{run_id}", type(None))
    def delete(self, run: Run | Id) -> Asked:
        """Delete a run that has ended, and the vectors that nobody else uses."""
        return Asked({"run_id": id_of(run)})

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

    @Streamed
    def events(self, run: Run | Id, *, since: str | None = None) -> Feed[RunEvent]:
        """Watch a run until its end: how far it is, what it costs, how long it will take.

        Where a connection breaks, it goes on after the last event; so it does after the id `since`.
        """
        return EventFeed(RUN_ROUTE, {"run_id": id_of(run)}, RUN_EVENTS, since)

    @Collected
    def download(
        self, run: Run | Id, path: PathLike[str] | str, **options: Unpack[ResultFileOptions]
    ) -> Feed[Download]:
        """Write what a run has produced into a file: .jsonl, .csv, .parquet or .npy.

        It has its name only when all of it is there. A broken connection is gone on with.
        """
        return _download(RESULTS, run, Path(path), options)

    @Collected
    def download_failures(
        self, run: Run | Id, path: PathLike[str] | str, **options: Unpack[FileOptions]
    ) -> Feed[Download]:
        """Write which items have failed, and why, into a file: .jsonl, .csv or .parquet."""
        return _download(FAILURES, run, Path(path), options)


def _download(
    route: Route[None], run: Run | Id, path: Path, options: Mapping[str, Any]
) -> Feed[Download]:
    asked = Asked({"run_id": id_of(run), "format": path.suffix.removeprefix(".")}, options)
    return DownloadFeed(route, asked, path)


def _asked(items: Items | None, options: Mapping[str, Any]) -> Asked:
    fields = dict(options)
    key, wait = fields.pop("idempotency_key", None), fields.pop("wait", None)
    return Asked(idempotency_key=key, **held(wait), **body_of(items, fields))


def _checked(items: Items | None, options: Mapping[str, Any]) -> Asked:
    return replace(_asked(items, {**options, "wait": None}), query={"dry_run": True})
