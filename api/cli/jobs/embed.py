"""`promptstack embed`: enqueue documents, watch them, print what came of it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.jobs.documents import TextFile, find_files, read_text
from promptstack.api.cli.jobs.watch import show_until_done, shown
from promptstack.api.cli.options.jobs import Collection, JobOptions
from promptstack.api.cli.options.values import seconds_of
from promptstack.api.cli.terminal import (
    JOB_FAILED,
    JsonFlag,
    err,
    out,
    plural,
    print_items,
    print_json,
    printable,
    stop,
)
from promptstack.repositories.models import JobState
from promptstack.services.errors import InvalidInput
from promptstack.services.jobs.views import JobView
from promptstack.tasks.composition import PromptStack

BATCH_FILES, BATCH_CHARACTERS = 100, 5_000_000


@dataclass(frozen=True)
class Enqueued:
    """A document whose job was enqueued."""

    source: str
    characters: int


def embed(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH", help="Files, or folders of text and Markdown.")
    ],
    *,
    job_options: JobOptions,
    chunk_tokens: Annotated[
        int | None,
        typer.Option(help="Cut into chunks of at most so many tokens; default from settings."),
    ] = None,
    collection: Collection = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out files that can't be embedded.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Embed documents, for `promptstack search` to find.

    A document embedded again pays only for the chunks that changed.
    """
    with connected() as stack:
        started = time.monotonic()
        lifetime = seconds_of(job_options.expires_in)
        max_bytes = stack.settings.max_text_bytes
        jobs: dict[UUID, Enqueued] = {}
        files = _check_all(find_files(paths), max_bytes, skip_bad=skip_bad)
        in_batches = batches(files, max_bytes)
        for some in shown(in_batches, len(files), label="Enqueueing", unit="files", quiet=as_json):
            # One transaction for many files: one each would wait for as many commits.
            with stack.ledger.transaction() as unit:
                # In one order: two commands with the same files must not wait for each other.
                for file in sorted(some, key=lambda file: file.source):
                    job = stack.jobs.enqueue_embedding(
                        file.text,
                        source=file.source,
                        provider=job_options.provider,
                        model=job_options.model,
                        chunk_tokens=chunk_tokens,
                        collection=collection,
                        bulk=job_options.bulk,
                        max_retries=job_options.max_retries,
                        tags=job_options.tags or (),
                        expires_in=lifetime,
                        session=unit.session,
                    )
                    jobs[job.id] = Enqueued(file.source, len(file.text))
        if not job_options.wait:
            _print_accepted(jobs, as_json=as_json)
            return
        finished = watch_embedding(stack, jobs, quiet=as_json)
        summary = summarize(finished)
        failed = [job for job in finished if job.state is not JobState.SUCCEEDED]
        if as_json:
            failures = [
                {"source": jobs[job.id].source, "job": job.id, "code": job.error_code}
                | {"error": job.error}
                for job in failed
            ]
            seconds = round(time.monotonic() - started, 3)
            print_json({**summary, "seconds": seconds, "failures": failures})
        else:
            out.print(sentence(summary, time.monotonic() - started))
        for job in failed:
            err.print(
                printable(f"{jobs[job.id].source}: {job.state}, {job.error}")
                + f" More: promptstack jobs show {job.id}",
                style="red",
                markup=False,
            )
        if failed:
            raise typer.Exit(JOB_FAILED)


def watch_embedding(
    stack: PromptStack, jobs: dict[UUID, Enqueued], *, quiet: bool = False
) -> list[JobView]:
    """Show a bar over the chunks of all documents until their jobs end; returns the jobs."""
    guesses = {job_id: stack.chunker.guess(file.characters) for job_id, file in jobs.items()}
    show_until_done(stack, guesses, label="Embedding", unit="chunks", quiet=quiet)
    return stack.jobs.get_all(list(jobs))


def batches(files: list[Path], max_bytes: int) -> Iterator[list[TextFile]]:
    """Read files in order, some at a time, so that not all are in memory at once."""
    some: list[TextFile] = []
    size = 0
    for path in files:
        file = read_text(path, max_bytes)
        some.append(file)
        size += len(file.text)
        if len(some) == BATCH_FILES or size > BATCH_CHARACTERS:
            yield some
            some, size = [], 0
    if some:
        yield some


def summarize(jobs: list[JobView]) -> dict[str, Any]:
    """Sum up the results of embedding jobs."""
    results = [job.result for job in jobs if job.result]
    sums = {
        name: sum(result[name] for result in results)
        for name in ("chunks", "embedded", "reused", "provider_calls", "tokens_used")
    }
    return {"documents": len(results), **sums, "failed": len(jobs) - len(results)}


def sentence(summary: dict[str, Any], seconds: float) -> str:
    """The summary as a sentence."""
    failed = f"; {plural(summary['failed'], 'document')} failed." if summary["failed"] else "."
    if not summary["documents"]:
        return f"No document was embedded whole in {seconds:.1f} s{failed}"
    documents = plural(summary["documents"], "document")
    begin = f"{documents}, {plural(summary['chunks'], 'chunk')} in {seconds:.1f} s: "
    if summary["provider_calls"] == 0:
        # Failed documents may have made calls.
        without = "" if summary["failed"] else "; no provider call was made"
        return f"{begin}all were embedded before{without}{failed}"
    return (
        f"{begin}{summary['embedded']} embedded in "
        f"{plural(summary['provider_calls'], 'provider call')}, "
        f"{summary['reused']} reused{failed}"
    )


def _check_all(paths: list[Path], max_bytes: int, *, skip_bad: bool) -> list[Path]:
    """Check every file before any is enqueued, so that a bad one leaves nothing half done.

    They are read again to be enqueued: all at once might not fit into memory.
    """
    good, problems = [], []
    for path in paths:
        try:
            read_text(path, max_bytes)
            good.append(path)
        except InvalidInput as error:
            problems.append(str(error))
    for problem in problems:
        err.print(printable(problem), style="red", markup=False)
    if problems and not skip_bad:
        stop(
            f"{len(problems)} of {len(paths)} files can't be embedded; nothing was enqueued. "
            "--skip-bad leaves them out."
        )
    if not good:
        stop("No file is left to embed.")
    return good


def _print_accepted(jobs: dict[UUID, Enqueued], *, as_json: bool) -> None:
    if as_json:
        print_items({"id": job_id, "source": file.source} for job_id, file in jobs.items())
    else:
        out.print(
            f"Accepted {plural(len(jobs), 'job')}; follow them with `promptstack jobs watch`."
        )
