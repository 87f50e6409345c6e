"""`promptstack demo`: the main job, shown on the manual that ships inside every CPython."""

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics
from uuid import UUID

from promptstack.api.cli.connection import embedded
from promptstack.api.cli.jobs.embed import Enqueued, sentence, summarize, watch_embedding
from promptstack.api.cli.jobs.watch import show_until_done
from promptstack.api.cli.runs.end import print_run
from promptstack.api.cli.runs.preflight import show_preflight
from promptstack.api.cli.runs.watch import watch_run
from promptstack.api.cli.serve.processes import Children, interrupt_on_signals
from promptstack.api.cli.terminal import JOB_FAILED, out, plural, stop
from promptstack.config.logging import configure_logging
from promptstack.config.settings import Settings, get_settings
from promptstack.embedded.folders import make_folder
from promptstack.embedded.servers import remove
from promptstack.repositories.models import AttemptState, Job, JobState, Worker
from promptstack.tasks.composition import PromptStack

WORKERS = 2
LOST_SECONDS = 3.0
CHUNK_TOKENS = 96
"""Small, so that many topics take several calls, and a worker can die between two of them."""
LOOK_SECONDS = 0.01
START_SECONDS = 60.0
"""For the workers to start and to have stored a part of a document."""
HELD_SHOWN = 2
QUESTIONS = ("how do I catch an exception", "loop over a sequence", "format a number with commas")
NEAREST, LOOKED_AT = 3, 30
PROMPTS, DIFFERENT = 60, 40
PRICES = """
[[prices]]
provider = "demo"
input_per_million = 0.25
output_per_million = 2
"""
NEXT_STEPS = """
What to do next, from this folder:
  .venv/bin/promptstack up                      start everything here and keep it
  .venv/bin/promptstack embed README.md docs    in another terminal: embed your own documents
  .venv/bin/promptstack search "how do retries work"
  .venv/bin/promptstack flower                  watch jobs in the browser
With OPENAI_API_KEY set: .venv/bin/promptstack generate --provider openai "Say hello."
"""


def demo() -> None:
    """Show the main job: embed, crash, search, retry, a run. Leaves nothing behind."""
    interrupt_on_signals()
    settings = get_settings()
    # Under root PostgreSQL's own user passes through it, also at a later `up`.
    make_folder(settings.state_dir, traversable=os.geteuid() == 0)
    folder = Path(tempfile.mkdtemp(prefix="demo-", dir=settings.state_dir))
    try:
        settings = _demo_settings(settings, folder)
        configure_logging(settings, quiet=True)
        _run(settings, folder)
    finally:
        remove(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _demo_settings(settings: Settings, folder: Path) -> Settings:
    """Its own servers and providers, whatever is configured: it must cost and touch nothing."""
    prices = folder / "models.toml"
    prices.write_text(PRICES, encoding="utf-8")
    return settings.model_copy(
        update={
            "database_url": None,
            "redis_url": None,
            "celery_broker_url": None,
            "default_llm_provider": "demo",
            "default_embedding_provider": "local",
            "models_file": prices,
            "chunk_tokens": CHUNK_TOKENS,
            "chunk_overlap_tokens": None,
            "heartbeat_seconds": 0.5,
            "worker_lost_seconds": LOST_SECONDS,
            "reconcile_seconds": 0.25,
        }
    )


def _variables(settings: Settings) -> dict[str, str]:
    """The same settings for the workers."""
    names = ("default_llm_provider", "default_embedding_provider", "models_file", "chunk_tokens")
    times = ("heartbeat_seconds", "worker_lost_seconds", "reconcile_seconds")
    given = {name.upper(): str(getattr(settings, name)) for name in (*names, *times)}
    return {**given, "CELERY_BROKER_URL": "", "CHUNK_OVERLAP_TOKENS": ""}


def _run(settings: Settings, folder: Path) -> None:
    started = time.monotonic()
    with embedded(settings, folder) as stack:
        _title(f"Real PostgreSQL and Valkey are up ({time.monotonic() - started:.1f} s)")
        children = Children(stack, log=folder / "worker.log", variables=_variables(settings))
        try:
            for number in range(1, WORKERS + 1):
                children.start(f"worker {number}", "promptstack.worker")
            _embed_through_a_crash(stack)
            _embed_again(stack)
            _ask(stack)
            _retry(stack)
            _batch(stack)
        finally:
            children.stop()
    out.print(f"\nDone in {time.monotonic() - started:.1f} s; everything is stopped.", style="bold")
    out.print(NEXT_STEPS.rstrip(), markup=False)


def _embed_through_a_crash(stack: PromptStack) -> None:
    size = sum(len(text.encode()) for text in topics.values())
    _title(
        f"Embedding the Python manual: {len(topics)} topics, {size / 1e3:,.0f} kB, one job each, "
        f"{WORKERS} workers"
    )
    started = time.monotonic()
    jobs = _enqueue(stack)
    pid, held = _kill_in_mid_document(stack)
    out.print(
        f"  Worker {pid} was killed (SIGKILL) in mid-document, and held {plural(len(held), 'job')}:"
    )
    for job in [job for job in held if job.current < job.total][:HELD_SHOWN]:
        out.print(f"    {jobs[job.id].source}: {job.current} of {job.total} chunks", markup=False)
    out.print(f"  The other takes them after {LOST_SECONDS:g} s without heartbeat (default 12).")
    summary = _finish(stack, jobs)
    unsettled = stack.usage.calls(only_unsettled=True, limit=1_000)
    lost = [call for call in unsettled if call.state is AttemptState.LOST]
    out.print(f"  {sentence(summary, time.monotonic() - started)}", markup=False)
    out.print(
        "  What the killed one had stored was kept and not asked for again; lost with it: "
        f"{plural(len(lost), 'call')}."
    )


def _enqueue(stack: PromptStack) -> dict[UUID, Enqueued]:
    longest_first = sorted(topics.items(), key=lambda topic: -len(topic[1]))
    with stack.ledger.transaction() as unit:
        return {
            stack.jobs.enqueue_embedding(text, source=topic, session=unit.session).id: Enqueued(
                topic, len(text)
            )
            for topic, text in longest_first
        }


def _kill_in_mid_document(stack: PromptStack) -> tuple[int, list[Job]]:
    """Kill a worker between two calls of one document; its process, and the jobs it held."""
    call = stack.factory.service_class("local").embedding_limits.items
    deadline = time.monotonic() + START_SECONDS
    while True:
        if time.monotonic() > deadline:
            stop(f"no worker was in mid-document within {START_SECONDS:g} s.", JOB_FAILED)
        running, workers = _in_hand(stack)
        for job in running:
            worker = workers.get(job.worker_id)
            if worker is None or not call <= job.current < job.total:
                continue
            # Frozen first: what it does now might end the document before it is killed.
            os.kill(worker.pid, signal.SIGSTOP)
            held = [one for one in _in_hand(stack)[0] if one.worker_id == worker.id]
            if any(one.id == job.id and one.current < one.total for one in held):
                os.kill(worker.pid, signal.SIGKILL)
                return worker.pid, sorted(held, key=lambda one: one.current, reverse=True)
            os.kill(worker.pid, signal.SIGCONT)
        time.sleep(LOOK_SECONDS)


def _in_hand(stack: PromptStack) -> tuple[list[Job], dict[UUID | None, Worker]]:
    """The running jobs, and the workers. Ends the demonstration where all jobs have ended."""
    with stack.ledger.transaction() as unit:
        if not unit.jobs.count_open():
            stop("all topics were embedded before a worker could be killed.", JOB_FAILED)
        running = list(unit.jobs.get_many(state=JobState.RUNNING))
        return running, {worker.id: worker for worker in unit.workers.get_many()}


def _finish(stack: PromptStack, jobs: dict[UUID, Enqueued]) -> dict[str, int]:
    finished = watch_embedding(stack, jobs)
    if any(job.state is not JobState.SUCCEEDED for job in finished):
        stop("not every topic was embedded.", JOB_FAILED)
    return summarize(finished)


def _embed_again(stack: PromptStack) -> None:
    _title("Embedding it all again: nothing is paid for twice")
    started = time.monotonic()
    summary = _finish(stack, _enqueue(stack))
    out.print(f"  {sentence(summary, time.monotonic() - started)}", markup=False)


def _ask(stack: PromptStack) -> None:
    _title("Asking it in plain words: the topics nearest in meaning")
    for question in QUESTIONS:
        scores: dict[str, float] = {}
        for match in stack.search.search(question, limit=LOOKED_AT):
            scores.setdefault(match.source, match.score)
        best = [f"{topic} {score:.3f}" for topic, score in list(scores.items())[:NEAREST]]
        out.print(f"  {question:<28}  {', '.join(best)}", markup=False)


def _retry(stack: PromptStack) -> None:
    _title("A generation that fails twice on purpose; the third try succeeds")
    job = stack.jobs.enqueue_generation(
        "Tell me how a durable job survives two failures.",
        provider="demo",
        options={"fail_times": 2},
    )
    show_until_done(stack, {job.id: 1}, label="Generating", unit="texts")
    for attempt in stack.jobs.get_attempts(job.id):
        waited = attempt.started_at - job.created_at
        outcome = attempt.error or "succeeded"
        out.print(f"  after {waited.total_seconds():5.2f} s  try {attempt.number}: {outcome}")
    ended = stack.jobs.get(job.id)
    if ended.state is not JobState.SUCCEEDED or ended.result is None:
        stop(f"the generation {ended.state}: {ended.error}", JOB_FAILED)


def _batch(stack: PromptStack) -> None:
    _title(
        f"A run of {PROMPTS} prompts, {DIFFERENT} of them different, at a price made up for this"
    )
    prompts = [
        {"custom_id": f"prompt-{number}", "prompt": f"Summarise topic {number % DIFFERENT}."}
        for number in range(PROMPTS)
    ]
    preflight = stack.runs.prepare_generation(
        prompts,
        provider="demo",
        max_tokens=50,
        name="demonstration",
        options={"delay_seconds": 0.5},
        in_flight=8,
    )
    show_preflight(preflight, named_by_id=True)
    run = stack.runs.start(preflight.run_id)
    watch_run(stack, run.id)
    print_run(stack.runs.get(run.id), as_json=False)


def _title(text: str) -> None:
    out.print(f"\n{text}", style="bold cyan", markup=False)
