"""A provider that nobody has a key for is refused, and what was never asked is not counted."""

import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from promptstack.config.settings import load_settings
from promptstack.repositories.models import JobState
from promptstack.repositories.run_models import RunState
from promptstack.services.errors import InvalidInput
from promptstack.services.llm.requests import Fallback
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute
from tests.processes import Process, run
from tests.runs import in_ledger, work

DOORS: dict[str, Callable[[WorkerServices], object]] = {
    "generation": lambda stack: stack.jobs.enqueue_generation("Hi", provider="openai"),
    "embedding": lambda stack: stack.jobs.enqueue_embedding("Hi", source="s", provider="openai"),
    "fallback": lambda stack: stack.jobs.enqueue_generation(
        "Hi", provider="demo", fallbacks=[Fallback(provider="openai")]
    ),
    "run of prompts": lambda stack: stack.runs.generate([{"prompt": "Hi"}], provider="openai"),
    "run of texts": lambda stack: stack.runs.embed(["Hi"], provider="openai"),
}


def says(stack: WorkerServices, providers: list[str] | None) -> UUID:
    """A worker that is alive, and says that it can ask these."""
    worker_id = uuid4()
    with stack.ledger.transaction() as unit:
        unit.heartbeats.beat(worker_id, "host", 1, providers=providers)
    return worker_id


def accepted(stack: WorkerServices) -> int:
    """How many jobs and runs there are, without the jobs of runs."""
    query = "SELECT (SELECT count(*) FROM jobs WHERE run_id IS NULL) + (SELECT count(*) FROM runs)"
    count: int = in_ledger(stack, query)
    return count


@pytest.mark.parametrize("door", DOORS)
def test_what_no_worker_has_a_key_for_is_refused_at_once(door: str, stack: WorkerServices) -> None:
    says(stack, [])
    says(stack, ["anthropic"])
    with pytest.raises(
        InvalidInput, match=r"openai needs an API key, .* read from OPENAI_API_KEY where"
    ):
        DOORS[door](stack)
    assert accepted(stack) == 0


@pytest.mark.parametrize("others", [[], [None], [["openai"]], [[], ["gemini", "openai"]]])
def test_who_hands_work_in_needs_no_key(
    others: list[list[str] | None], stack: WorkerServices
) -> None:
    """Where no worker is alive, or one doesn't say, it is not known that there is none."""
    for providers in others:
        says(stack, providers)
    with stack.ledger.transaction() as unit:
        dead = uuid4()
        unit.heartbeats.beat(dead, "host", 1, providers=[])
        unit.session.execute(
            text("UPDATE workers SET heartbeat_at = now() - interval '1 hour' WHERE id = :id"),
            {"id": dead},
        )
    for door in DOORS.values():
        door(stack)
    assert accepted(stack) == len(DOORS)


def test_a_worker_says_whom_it_can_ask(
    stack: WorkerServices, environment: dict[str, str], start_worker: Callable[..., Process]
) -> None:
    start_worker(GEMINI_BASE_URL="http://127.0.0.1:9", ANTHROPIC_API_KEY="sk-ant-test")
    assert in_ledger(stack, "SELECT providers FROM workers") == ["anthropic", "gemini"]
    promptstack = str(Path(sys.executable).with_name("promptstack"))
    done = run([promptstack, "generate", "Hi", "--provider", "openai"], environment)
    assert done.returncode == 2
    assert "read from OPENAI_API_KEY where the workers run" in " ".join(done.stderr.split())


def test_a_call_that_was_never_made_is_not_counted(stack: WorkerServices) -> None:
    job = stack.jobs.enqueue_generation("Hi", provider="openai")
    execute(stack, job.id)
    ended = stack.jobs.get(job.id)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "PROVIDER_NOT_CONFIGURED")
    made = stack.runs.generate([{"prompt": f"{n}"} for n in range(5)], provider="openai")
    failed = work(stack, made.id)
    assert (failed.state, failed.error_code) == (RunState.FAILED, "PROVIDER_NOT_CONFIGURED")
    assert failed.calls == 0
    assert in_ledger(stack, "SELECT count(*) FROM attempts") == 0


def test_a_proxy_that_no_call_could_pass_is_no_call_either(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    with WorkerServices.open(load_settings(_env_file=None)) as stack:
        job = stack.jobs.enqueue_generation("Hi", provider="openai")
        execute(stack, job.id)
        ended = stack.jobs.get(job.id)
        assert ended.error_code == "PROVIDER_NOT_CONFIGURED"
        assert "ALL_PROXY" in (ended.error or "")
        assert in_ledger(stack, "SELECT count(*) FROM attempts") == 0
