"""Texts as they are produced by real workers, read through a worker's death and at the terminal."""

import signal
import threading
from collections.abc import Callable

from promptstack.repositories.models import AttemptState, Billing, JobState
from promptstack.services.streams.pieces import Piece
from promptstack.simulator.process import SimulatorProcess
from promptstack.tasks.composition import PromptStack
from tests.acceptance.test_cli import Cli, cli
from tests.processes import Process, wait_until

__all__ = ["cli"]
PROMPT = "Count from one to thirty in words, and do not leave out any of them, please."


class Reader:
    """Reads a text in a thread, as a program would that shows it."""

    def __init__(self, runs: PromptStack, **options: object) -> None:
        self.job = runs.jobs.enqueue_generation(PROMPT, stream=True, **options)  # type: ignore[arg-type]
        self.pieces: list[Piece] = []
        self._streams = runs.jobs
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        self.pieces.extend(self._streams.stream(self.job, timeout=120))

    def finish(self) -> None:
        self._thread.join(120)
        assert not self._thread.is_alive()

    @property
    def text(self) -> str:
        """What is shown after the last restart."""
        texts: list[str] = []
        for piece in list(self.pieces):
            if piece.kind == "restart":
                texts.clear()
            texts.append(piece.text)
        return "".join(texts)


def test_a_worker_that_is_killed_in_mid_stream_costs_a_restart_and_no_text(
    runs: PromptStack, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    simulator.set_latency(0.0, piece_seconds=0.2)
    worker = start_worker()
    reader = Reader(runs)
    wait_until(lambda: len(reader.text) > len("Simulated"), "some of the text")
    first = reader.text
    worker.send(signal.SIGKILL)
    worker.wait()
    simulator.set_latency(0.0)
    start_worker()
    reader.finish()
    job = runs.jobs.get(reader.job.id)
    assert job.state is JobState.SUCCEEDED
    assert job.result is not None
    assert reader.text == job.result["text"]
    restarts = [piece for piece in reader.pieces if piece.kind == "restart"]
    assert [(piece.attempt, piece.reason) for piece in restarts] == [(2, "the job is tried again")]
    assert reader.pieces[0].text
    assert job.result["text"].startswith(first[:9])
    attempts = runs.jobs.get_attempts(job.id)
    assert [one.state for one in attempts] == [AttemptState.LOST, AttemptState.SUCCEEDED]


def test_the_command_line_prints_a_text_as_it_comes(
    runs: PromptStack,
    simulator: SimulatorProcess,
    start_worker: Callable[..., Process],
    cli: Cli,
) -> None:
    start_worker()
    done = cli("generate", "--stream", PROMPT)
    [job] = runs.jobs.get_many()
    assert job.result is not None
    assert (done.returncode, done.stdout) == (0, job.result["text"] + "\n")
    # What a broken stream has printed stays, and the reader is told that the text begins again.
    simulator.control({"kind": "cut"})
    done = cli("generate", "--stream", "--max-retries", "1", PROMPT)
    assert done.returncode == 0
    assert done.stdout.endswith(job.result["text"] + "\n")
    simulator.control({"kind": "cut"})
    done = cli("generate", "--stream", "--max-retries", "0", PROMPT)
    assert done.returncode == 1
    assert "ended before the answer did" in done.stderr
    # Both broken streams are paid for, as far as anybody knows.
    for job in runs.jobs.get_many()[:2]:
        attempt = runs.jobs.get_attempts(job.id)[0]
        assert (attempt.state, attempt.billing) == (AttemptState.FAILED, Billing.BILLED)
        assert attempt.cost_usd
        assert attempt.note == "the answer was cut off; its tokens are an estimate"
