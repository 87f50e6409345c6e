"""The keeper of forked workers: told to stop, or met by surprise, at the worst moment."""

import signal
import textwrap
from pathlib import Path

import pytest

from tests.processes import ROOT, Process, wait_until

KEEPER = """
import logging, os, signal, sys, time
from promptstack.worker.processes import WorkerProcesses
logging.basicConfig()
real_fork, real_setpgid = os.fork, os.setpgid

def work():
    print("works", flush=True)
    time.sleep(600)
    return 0

{happens}
sys.exit(WorkerProcesses(1, work, with_parent=False).run())
"""
TOLD_WITHIN_FORK = """
def fork():
    pid = real_fork()
    if pid:
        os.kill(os.getpid(), signal.SIGTERM)
    return pid
os.fork = fork
"""
TOLD_BEFORE_THE_WORKER_LISTENS = """
def setpgid(*given):
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(0.5)
    real_setpgid(*given)
os.setpgid = setpgid
"""
ORPHAN = """
if real_fork() == 0:
    time.sleep(0.3)
    os._exit(0)
def work():
    time.sleep(1.0)
    print("works", flush=True)
    time.sleep(600)
"""
BUG = """
def work():
    raise RuntimeError("nobody has thought of this")
"""


def keeper(happens: str, folder: Path) -> Process:
    script = folder / "keeper.py"
    script.write_text(KEEPER.format(happens=textwrap.dedent(happens)))
    return Process([str(script)], {"PYTHONPATH": str(ROOT)}, folder / "log")


@pytest.mark.parametrize("happens", [TOLD_WITHIN_FORK, TOLD_BEFORE_THE_WORKER_LISTENS])
def test_a_worker_that_is_just_forked_is_told_to_stop_too(happens: str, tmp_path: Path) -> None:
    with keeper(happens, tmp_path) as running:
        assert running.wait() == 0


def test_the_end_of_an_unknown_child_is_no_end_of_the_keeper(tmp_path: Path) -> None:
    with keeper(ORPHAN, tmp_path) as running:
        wait_until(lambda: "works" in running.output(), "the worker")
        running.send(signal.SIGTERM)
        assert running.wait() == 0


def test_what_ends_a_worker_is_told(tmp_path: Path) -> None:
    with keeper(BUG, tmp_path) as running:
        wait_until(lambda: "nobody has thought of this" in running.output(), "the reason")
