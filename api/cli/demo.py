"""`promptstack demo`: the main job, shown on the manual that ships inside every CPython."""

import os
import shutil
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

from api.cli.connection import embedded
from api.cli.enqueue import Enqueued, sentence, summarize, watch_embedding
from api.cli.processes import Children, interrupt_on_signals
from api.cli.search import print_matches
from api.cli.terminal import JOB_FAILED, out, stop
from api.cli.watching import show_until_done
from config.embedded.folders import make_folder
from config.embedded.servers import remove
from config.logging import configure_logging
from config.settings import Settings, get_settings
from repositories.models import JobState
from tasks.composition import PromptStack

QUESTIONS = ("how do I catch an exception", "loop over a sequence", "format a number with commas")
PASSAGES = 3
NEXT_STEPS = """
What to do next, from this folder:
  .venv/bin/promptstack up                      start everything here and keep it
  .venv/bin/promptstack embed README.md docs    in another terminal: embed your own documents
  .venv/bin/promptstack search "how do retries work"
  .venv/bin/promptstack flower                  watch jobs in the browser
With OPENAI_API_KEY set: .venv/bin/promptstack generate --provider openai "Say hello."
"""


def demo() -> None:
    """Show the main job: embed, search, retry. Leaves nothing behind."""
    interrupt_on_signals()
    settings = _demo_settings(get_settings())
    configure_logging(settings, quiet=True)
    # Under root PostgreSQL's own user passes through it, also at a later `up`.
    make_folder(settings.state_dir, traversable=os.geteuid() == 0)
    folder = Path(tempfile.mkdtemp(prefix="demo-", dir=settings.state_dir))
    try:
        _run(settings, folder)
    finally:
        remove(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _demo_settings(settings: Settings) -> Settings:
    # Its own servers whatever is configured: a demonstration must not write into real data.
    return settings.model_copy(update={"database_url": None, "redis_url": None})


def _run(settings: Settings, folder: Path) -> None:
    started = time.monotonic()
    with embedded(settings, folder) as stack:
        _title(f"Real PostgreSQL and Valkey are up ({time.monotonic() - started:.1f} s)")
        children = Children(stack, log=folder / "worker.log")
        try:
            children.start("worker", "worker")
            _embed_manual(stack)
            _ask(stack)
            _retry(stack)
        finally:
            children.stop()
    out.print(f"Done in {time.monotonic() - started:.1f} s; everything is stopped.", style="bold")
    out.print(NEXT_STEPS, markup=False)


def _embed_manual(stack: PromptStack) -> None:
    size = sum(len(text.encode()) for text in topics.values())
    _title(f"Embedding the Python manual: {len(topics)} topics, {size / 1e3:,.0f} kB, one job each")
    started = time.monotonic()
    with stack.ledger.transaction() as unit:
        jobs = {
            stack.jobs.enqueue_embedding(text, source=topic, session=unit.session).id: Enqueued(
                topic, len(text)
            )
            for topic, text in topics.items()
        }
    finished = watch_embedding(stack, jobs)
    if any(job.state is not JobState.SUCCEEDED for job in finished):
        stop("not every topic was embedded.", JOB_FAILED)
    out.print(sentence(summarize(finished), time.monotonic() - started))


def _ask(stack: PromptStack) -> None:
    for question in QUESTIONS:
        _title(f'Asking: "{question}"')
        print_matches(stack.search.search(question, limit=PASSAGES))


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
    out.print(f"  {ended.result['text']}", markup=False)


def _title(text: str) -> None:
    out.print(f"\n{text}", style="bold cyan", markup=False)
