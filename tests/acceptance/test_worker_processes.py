"""`promptstack worker --processes N`: workers that are forked, and forked again when they end."""

import os
import signal
from pathlib import Path

import pytest

from promptstack.repositories.models import JobState
from promptstack.tasks.composition import PromptStack
from tests.processes import Process, wait_until


def pids(stack: PromptStack) -> set[int]:
    with stack.ledger.transaction() as unit:
        return {worker.pid for worker in unit.workers.get_many()}


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("end", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_workers_are_kept_running_and_end_with_their_keeper(
    stack: PromptStack, environment: dict[str, str], tmp_path: Path, end: str
) -> None:
    command = ["-m", "promptstack.worker", "--processes", "2"]
    with Process(command, environment, tmp_path / "workers.log") as keeper:
        wait_until(lambda: len(pids(stack)) == 2, "two workers")
        first, second = pids(stack)
        assert keeper.pid not in {first, second}
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: len(pids(stack)) == 3, "another one")
        job = stack.jobs.enqueue_generation("x")
        wait_until(
            lambda: stack.jobs.get(job.id).state is JobState.SUCCEEDED, "a job to be done by them"
        )
        third = (pids(stack) - {first, second}).pop()
        keeper.send(signal.Signals[end])
        assert keeper.wait() == (-signal.SIGKILL if end == "SIGKILL" else 0)
        wait_until(lambda: is_gone(second) and is_gone(third), "the workers to end too")


def test_workers_that_can_not_start_are_not_started_for_ever(
    environment: dict[str, str], tmp_path: Path
) -> None:
    wrong = {**environment, "MODELS_FILE": str(tmp_path / "missing.toml")}
    with Process(
        ["-m", "promptstack.worker", "--processes", "2"], wrong, tmp_path / "log"
    ) as keeper:
        assert keeper.wait() == 2
        assert "MODELS_FILE" in keeper.output()
